"""The room of texts, as `mdlstm_tk.kinds.rooms` finds it."""

from mdlstm_tk.kinds.rooms import BuiltInTask, Room

ROOM = Room(
    kinds={"transcribe": "text.transcribe:KIND", "baselines": "text.baselines:KIND"},
    tasks={
        "digit-strings": BuiltInTask("text.digit_strings:DigitStrings", ("seed", "validation", "augment")),
    },
    runtime_names={"CharacterModel": "text.character_model:CharacterModel"},
    networks={
        "md": {"transcribe": "text.networks:TextRecognizer"},
        "pages": {"baselines": "text.baseline_network:LineFinder"},
        "lines": {"transcribe": "text.networks:LineRecognizer"},
    },
)
