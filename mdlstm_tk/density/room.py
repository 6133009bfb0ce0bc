"""The room of densities, as `mdlstm_tk.kinds.rooms` finds it."""

from mdlstm_tk.kinds.rooms import Room

ROOM = Room(
    kinds={"density": "density.kind:KIND"},
    tasks={
        "digits-binary": ("density.digits:DigitsDensity", lambda task, c: task(c.seed, c.validation)),
        "digits-grey": (
            "density.digits:DigitsDensity",
            lambda task, c: task(c.seed, c.validation, binary=False),
        ),
        "fashion": ("density.fashion:Fashion", lambda task, c: task(c.seed, c.validation, c.data)),
        "ising": ("density.ising:Ising", lambda task, c: task(c.grid)),
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
