"""The room of densities, as `mdlstm_tk.kinds.rooms` finds it."""

from mdlstm_tk.kinds.rooms import Room

ROOM = Room(
    kinds={"density": "density.kind:KIND"},
    tasks={
        "digits-binary": ("data.builtin.digits:DigitsDensity", lambda task, c: task(c.seed, c.validation)),
        "digits-grey": (
            "data.builtin.digits:DigitsDensity",
            lambda task, c: task(c.seed, c.validation, binary=False),
        ),
        "fashion": ("data.builtin.fashion:Fashion", lambda task, c: task(c.seed, c.validation, c.data)),
        "ising": ("data.builtin.ising:Ising", lambda task, c: task(c.grid)),
    },
    networks={"pixel": {"density": "models.pixel:PixelNet"}},
    verbs={"sample": "cli.sample:sample"},
)
