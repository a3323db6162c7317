"""A rung to read: its file, and beside it the loop that LLVM made of it."""

from pathlib import Path

from minires.errors import MiniresError
from minires.kernels.operators import FORMATS
from minires.ladder import climb, product
from minires.measure.peak import inner_loop

# Instructions that multiply, of x86 and of ARM: the loop with most of them is the one to show. LLVM
# leaves a second loop beside one of vectors, value by value, for what does not fill a vector.
VECTORS = (
    r"\b(?:v?mulp|v?pmul|v?pmadd|vfmadd\w+p|vpdp|vdpbf16|f?m(?:ul|la)\s+v|[su]mlal|[su]+dot|bf[dm])"
)
VALUES = r"\b(?:v?muls|vfmadd\w+s|imul|f?mul|f?madd|smaddl)"


def show(name: str, precision: str) -> str:
    """Print a rung's source, and the inner loop that it became for this machine.

    `MiniresError` for a name that this precision's ladder has not, or for a rung that has no loop
    of its own: NumPy's, and the engine's.
    """
    rungs = {rung.name: rung for rung in climb.rungs(precision)}
    own = [known for known in rungs if known not in ("numpy", "engine")]
    if name not in own:
        raise MiniresError(f"{precision} has no rung {name} to show; it has {', '.join(own)}")
    layer, p, _ = climb.problem(precision)
    with product.watching() as compiled:
        rungs[name].prepare(layer, p)
    file, function = compiled[-1]
    isa = climb.vector_isa(FORMATS[precision].operands)
    assembly = next(iter(function.inspect_asm().values()))
    listing = inner_loop(assembly, VECTORS) or inner_loop(assembly, VALUES)
    text = Path(file).read_text(encoding="utf-8").rstrip()
    title = f"{precision} {name}: {rungs[name].idea}; in minires/ladder/{Path(file).name}"
    made = f"its inner loop, as LLVM made it for {isa.name}:"
    return f"{title}\n\n{text}\n\n{made}\n{listing or '(LLVM has left no loop that multiplies)'}"
