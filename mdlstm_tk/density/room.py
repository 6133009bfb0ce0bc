"""The room of densities, as `mdlstm_tk.kinds.rooms` finds it."""

from mdlstm_tk.kinds.rooms import BuiltInTask, Room

ROOM = Room(
    kinds={"density": "density.kind:KIND"},
    tasks={
        "digits-binary": BuiltInTask("density.digits:DigitsDensity", ("seed", "validation")),
        "digits-grey": BuiltInTask(
            "density.digits:DigitsDensity", ("seed", "validation"), {"binary": False}
        ),
        "fashion": BuiltInTask("density.fashion:Fashion", ("validation", "data")),
        "ising": BuiltInTask("density.ising:Ising", ("grid",)),
    },
    networks={"pixel": {"density": "density.pixel:PixelNet"}},
    settings={
        "levels": {
            "default": 2,
            "help": "Levels that each channel of data of kind density is rounded to; 2: black and white.",
            "min": 2,
            "max": 256,
        }
    },
    verbs={"sample": ("Train", "density.verb:sample")},
)
