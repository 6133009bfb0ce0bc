"""Run networks tile by tile: images of any size in bounded memory, with the result of the whole grid."""
