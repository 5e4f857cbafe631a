"""Counts what a program that was compiled for a TPU moves through its main memory, HBM.

The compiler's own "bytes accessed" also has what stays in VMEM, the chip's fast memory of
many megabytes, and has asynchronous copies between the two more than once.
"""

import math
import re

ITEM_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64"), 8),
}
# An operation of HLO: name, shape, operation, operands, target of a custom call.
HLO = (
    r"^ +(?:ROOT )?%(\S+) = (\(.*?\)(?= [a-z-]+\()|\S+) ([a-z-]+)\((.*?)\)"
    r'(?:, custom_call_target="(\w+)"|,|$)'
)
# Operations that move nothing themselves; the first puts slices together in place.
FREE = {
    *("ConcatBitcast", "after-all", "bitcast", "constant", "get-tuple-element"),
    *("optimization-barrier", "parameter", "tuple"),
}
# Which of the arrays that an asynchronous copy gives is the copy.
DESTINATION = {"copy-start": 0, "slice-start": 1}


def arrays(shape: str) -> list[tuple[int, bool]]:
    """Returns for each array of a shape of HLO its bytes and whether it is in HBM.

    Bytes are those of whole tiles: `bf16[64,96]{1,0:T(8,128)}` is padded to 128
    channels. S(1) is the chip's fast memory, VMEM, the other spaces are smaller still.

    Source: openxla.org/xla/tiled_layout and openxla.org/xla/shapes.
    """
    found = []
    for kind, sides, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape):
        size = [int(side) for side in sides.split(",") if side]
        tiled = re.match(r"\{([\d,]+):T\(([\d,]+)\)", layout)
        if tiled:
            minor, tile = (list(map(int, part.split(","))) for part in tiled.groups())
            for dimension, side in zip(minor, reversed(tile), strict=False):
                size[dimension] = math.ceil(size[dimension] / side) * side
        in_hbm = not re.search(r"S\([1-9]\)", layout)
        found.append((math.prod(size) * ITEM_BYTES[kind], in_hbm))
    return found


def hbm_bytes(program: str) -> int:
    """Returns the bytes that an optimised program moves to and from HBM.

    Each operand and each result of each operation counts once and whole, unless the
    compiler placed it in VMEM: what a fusion keeps to itself does not count.

    Args:
        program: Text of HLO.

    Raises:
        ValueError: If it has loops or calls, which are not looked into.
    """
    entry = program[program.index("\nENTRY ") :]
    shapes: dict[str, list[tuple[int, bool]]] = {}
    total = 0
    for name, shape, operation, operands, target in re.findall(
        HLO, entry, re.MULTILINE
    ):
        shapes[name] = made = arrays(shape)
        read = [shapes[operand] for operand in re.findall(r"%([\w.-]+)", operands)]
        moved = [*made, *(array for part in read for array in part)]
        if operation in FREE or operation.endswith("-done") or target in FREE:
            moved = []
        elif operation in DESTINATION:
            to = made[DESTINATION[operation]]
            moved = [to, (to[0], read[0][0][1])]  # It reads as much as it writes.
        elif operation in ("call", "conditional", "while") or "-start" in operation:
            raise ValueError(f"cannot count what {operation} moves: %{name}")
        total += sum(size for size, in_hbm in moved if in_hbm)
    return total
