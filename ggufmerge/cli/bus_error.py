"""A mapped file that becomes shorter while it is read ends the process with a signal, SIGBUS. This makes that one line.

The signal comes in the middle of a kernel or of numpy, perhaps with the GIL held, so no Python may run: the handler is
compiled (by numba's LLVM), and calls nothing but `write` and `_exit`, which POSIX allows in a handler. What was
finished so far is kept, as after `kill -9`.
"""

from __future__ import annotations

import ctypes
import signal

_LINE = b"error: a source became shorter while it was read: give the same command again when the file is complete\n"
_engines: list[object] = []  # compiled code must live as long as the process

_CODE = """
@line = private constant [{length} x i8] c"{text}"
declare i64 @write(i32, i8*, i64)
declare void @_exit(i32)
define void @handle(i32 %number) {{
  %start = getelementptr [{length} x i8], [{length} x i8]* @line, i64 0, i64 0
  %count = call i64 @write(i32 2, i8* %start, i64 {length})
  call void @_exit(i32 1)
  unreachable
}}
"""


def install() -> None:
    """End the process with a line and exit code 1 on SIGBUS; where there is no such signal (Windows), do nothing."""
    if _engines or not hasattr(signal, "SIGBUS"):
        return
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    text = "".join(f"\\{byte:02X}" for byte in _LINE)
    module = llvm.parse_assembly(_CODE.format(length=len(_LINE), text=text))
    engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
    engine.finalize_object()
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGBUS, engine.get_function_address("handle"))
    _engines.append(engine)
