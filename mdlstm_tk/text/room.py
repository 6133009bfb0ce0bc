"""The room of texts, as `mdlstm_tk.kinds.rooms` finds it."""

from mdlstm_tk.kinds.rooms import Room

ROOM = Room(
    kinds={"transcribe": "text.transcribe:KIND", "baselines": "text.baselines:KIND"},
    tasks={
        "digit-strings": (
            "text.digit_strings:DigitStrings",
            lambda task, c: task(c.seed, c.validation, c.augment),
        )
    },
    runtime_names={"CharacterModel": "text.character_model:CharacterModel"},
    networks={
        "md": {"transcribe": "text.networks:TextRecognizer"},
        "pages": {"baselines": "text.baseline_network:LineFinder"},
        "lines": {"transcribe": "text.networks:LineRecognizer"},
    },
)
