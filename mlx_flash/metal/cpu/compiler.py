"""Finds a clang, builds translated kernels into shared libraries, and caches them on disk by a hash of their input."""

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..frontend import recursion, shared_objects
from ..frontend.errors import CompileError, ToolchainError
from . import messages, precompiled
from .target import Target, here

_HERE = Path(__file__).parent
INCLUDE = precompiled.INCLUDE
_SHIM = INCLUDE / "shim"
# On a Mac without Apple's developer tools a call of this program asks the user to install them. The compiler in them
# counts its versions otherwise than LLVM, and is not supported.
APPLES_CLANG = "/usr/bin/clang"
_INSTALL = 'pip install "mlx-flash-attention[simulator]"'

# The part of a thread's stack of 128 KiB (runtime/worker.h) that the variables of a kernel may take.
_MOST_BYTES = 72 << 10
_KERNEL_FLAGS = (
    "-x", "clcpp", "-cl-std=CLC++2021", "-cl-no-stdinc", "-cl-single-precision-constant", "-fdeclspec",
    "-Xclang", "-cl-ext=+all,-cl_khr_fp64,-__opencl_c_fp64", "-fno-math-errno", "-fPIC", "-O1",
    "-ffp-contract=off",
    "-fno-color-diagnostics", "-fno-caret-diagnostics", "-ferror-limit=20",
    "-Wimplicit-float-conversion", "-Wno-error=c++11-narrowing", f"-Wframe-larger-than={_MOST_BYTES}",
    # Merged code would have the line of only one of its sources, and a merged barrier would be a third place.
    "-mllvm", "-enable-tail-merge=false",
    "-fno-optimize-sibling-calls", "-finstrument-function-entry-bare",
    "-fsanitize=integer-divide-by-zero", "-fsanitize-recover=all",
    # These errors always end the threadgroup: the compiler keeps no state for afterwards, which saves a fifth of its
    # time.
    "-fno-sanitize-recover=integer-divide-by-zero,alignment,signed-integer-overflow",
)  # fmt: skip
_CHECK_FLAGS = (
    "-fsanitize=thread", "-mllvm", "-tsan-instrument-func-entry-exit=0", "-mllvm", "-tsan-instrument-atomics=0",
    "-mllvm", "-tsan-instrument-read-before-write=1",
    "-fsanitize=array-bounds,alignment,signed-integer-overflow,implicit-signed-integer-truncation",
    "-fstrict-flex-arrays=1", "-fno-vectorize", "-fno-slp-vectorize",
)  # fmt: skip
# Only a report needs lines, which take a sixth of the compile time: for a report the kernel is built again, with lines.
# They do not change its code.
_LINE_FLAGS = ("-gdwarf-4", "-gline-tables-only", "-mllvm", "-experimental-debug-variable-locations=false")
# Passes over loops take a third of the compile time. Kernels full of checks run as fast without them.
_LOOP_PASSES = "simple-loop-unswitch,indvars,loop-idiom,loop-deletion,loop-unroll-full"
_HOISTING_PASSES = "loop-rotate,licm,loop-instsimplify,loop-simplifycfg,loop-simplify,lcssa"
# So do they without passes that order finished code, which take a tenth, and without the search for places where a
# variable leaves its register, which takes a twentieth.
_PLAIN_ORDER = (
    "-mllvm", "-disable-lsr", "-mllvm", "-enable-misched=false", "-mllvm", "-disable-machine-licm",
    "-mllvm", "-disable-machine-cse", "-mllvm", "-disable-machine-sink", "-mllvm", "-disable-branch-fold",
    "-mllvm", "-disable-block-placement", "-mllvm", "-disable-early-taildup",
    "-mllvm", "-grow-region-complexity-budget=0",
)  # fmt: skip
# A kernel full of checks spends its time in them: its instructions are chosen as in code that is not optimised, which
# takes a quarter less time to compile. Registers are given as ever: given fast, a frame takes ten times the memory.
_SIMPLE_CODE = ("-mllvm", "-fast-isel", "-mllvm", "-disable-cgp")
_RUNTIME_FLAGS = (
    "-x",
    "c",
    "-std=gnu17",
    "-O2",
    "-fPIC",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-omit-frame-pointer",
    "-ffp-contract=off",
    "-w",
)


@functools.cache
def toolchain() -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """(compiler command, linker command, identity): ziglang's clang, else a system clang of version 19 or later."""
    here()
    damaged = ""
    try:
        import ziglang
    except ImportError:
        pass
    else:
        zig = Path(ziglang.__path__[0]) / "zig"
        if os.access(zig, os.X_OK):
            identity = f"ziglang {getattr(ziglang, '__version__', '')} {zig.stat().st_size}"
            return (str(zig), "clang"), (str(zig), "ld.lld"), identity
        damaged = f". {zig}, of the installed package ziglang, is missing or cannot be executed: install it again."
    names = ["clang"] + [f"clang-{version}" for version in range(30, 18, -1)]
    for name in names:
        path = shutil.which(name)
        if not path or (platform.system() == "Darwin" and path == APPLES_CLANG):
            continue
        text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"version (\d+)", text)
        if version and int(version[1]) >= 19:
            return (path,), (path, "-nostdlib"), text
    raise ToolchainError(f"The Metal simulator needs clang to compile kernels and found none: {_INSTALL}{damaged}")


def cache_directory() -> Path:
    """The folder of cached kernels: $MLX_FLASH_CACHE, else below $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("MLX_FLASH_CACHE")
    if own:
        return Path(own) / "simulator"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mlx_flash" / "simulator"


@functools.cache
def _sources_hash() -> str:
    digest = hashlib.sha256()
    # A later version of these files may refuse a text that an earlier one accepted.
    refusing = (_HERE / "compiler.py", _HERE / "messages.py", Path(recursion.__file__), Path(shared_objects.__file__))
    for path in sorted([*(_HERE / "runtime").iterdir(), *INCLUDE.rglob("*"), *refusing]):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    for flags in (_KERNEL_FLAGS, _CHECK_FLAGS, _LINE_FLAGS, _RUNTIME_FLAGS):
        digest.update(repr(flags).encode())
    digest.update(toolchain()[2].encode())
    return digest.hexdigest()


def _run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")


def modules() -> list[Path]:
    """The Python files that turn a Metal text into one that clang compiles."""
    return sorted([*_HERE.glob("*.py"), *(_HERE.parent / "frontend").glob("*.py")])


@functools.cache
def _package_hash() -> str:
    digest = hashlib.sha256(repr((_sources_hash(), here())).encode())
    for path in modules():
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _facts_file(parts: tuple) -> Path:
    return cache_directory() / f"{hashlib.sha256(repr((_package_hash(), *parts)).encode()).hexdigest()[:40]}.json"


def recall(*parts) -> tuple[Path, dict] | None:
    """(library, facts) remembered for the kernel that `parts` describe; None if it was not built here before.

    Without this, translating a long text would take most of the time of finding a kernel that is already built.
    """
    try:
        facts = json.loads(_facts_file(parts).read_text())
    except (OSError, ValueError):
        return None
    library = cache_directory() / facts["library"]
    return (library, facts) if library.exists() else None


def remember(library: Path, facts: dict, *parts):
    """Stores the library and the facts for `recall`."""
    target = _facts_file(parts)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / "facts.json"
        built.write_text(json.dumps({**facts, "library": library.name}))
        _publish(built, target)


def _publish(built: Path, target: Path):
    """Moves a file to its place. Another process may build the same one: a rename is atomic, and both are equal."""
    os.replace(built, target)


def _runtime_objects(folder: Path, target: Target) -> list[Path]:
    compiler, _, _ = toolchain()
    objects, flags = [], [*_RUNTIME_FLAGS, *target.flags]
    key = hashlib.sha256("\0".join([_sources_hash(), *flags]).encode()).hexdigest()[:24]
    for source in sorted((_HERE / "runtime").glob("*.c")):
        built = folder / f"runtime-{source.stem}-{key}.o"
        objects.append(built)
        if built.exists():
            continue
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / "runtime.o"
            done = _run([*compiler, *flags, "-c", str(source), "-o", str(fresh)])
            if done.returncode:
                raise ToolchainError(f"The simulator's runtime does not compile ({source.name}):\n{done.stderr}")
            _publish(fresh, built)
    return objects


@functools.cache
def _quick(check: bool, count: bool) -> tuple[str, ...]:
    """Flags that leave passes out, where the compiler knows them: LLVM's since version 21.

    In what is counted, loads that do not change are hoisted out of loops, as any compiler leaves them.
    """
    compiler, _, _ = toolchain()
    passes = _LOOP_PASSES if count else f"{_LOOP_PASSES},{_HOISTING_PASSES}"
    flags = ("-mllvm", f"-opt-disable={passes}", *_PLAIN_ORDER, *(_SIMPLE_CODE if check else ()))
    known = _run([*compiler, "-x", "c", "-fsyntax-only", *flags, os.devnull]).returncode == 0
    return flags if known else ()


def _flags(target: Target, check: bool, count: bool, lines: bool) -> list[str]:
    return [
        *_KERNEL_FLAGS, *target.flags, *(_CHECK_FLAGS if check else ()), *_quick(check, count),
        *(("-DMSL_COUNT_CALLS",) if count else ()), *(_LINE_FLAGS if lines else ()),
    ]  # fmt: skip


def objects(
    text: str,
    entry: str,
    prelude: str,
    folder: Path,
    target: Target,
    check: bool,
    count: bool = False,
    lines: bool = False,
) -> list[Path]:
    """The object of a translated kernel, made in `folder`, and the objects of the runtime, which are cached."""
    built = folder / "kernel.o"
    flags = _flags(target, check, count, lines)
    compile_text(flags, ["-c", "-o", str(built)], text, entry, _SHIM / prelude, folder, often=True)
    return [built, *_runtime_objects(cache_directory(), target)]


def build(
    text: str,
    entry: str,
    prelude: str,
    check: bool,
    count: bool = False,
    lines: bool = False,
    target: Target | None = None,
) -> Path:
    """The shared library of a translated kernel, by default for this machine; compiled at most once per content.

    check: its accesses are checked. count: its operations are counted. lines: it has a table for `frontend.lines`.
    """
    target, folder = target or here(), cache_directory()
    parts = [_sources_hash(), text, entry, prelude, *_flags(target, check, count, lines)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
    library = folder / f"{key}{target.suffix}"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        linked = Path(scratch) / library.name
        parts = objects(text, entry, prelude, Path(scratch), target, check, count, lines)
        done = target.link(toolchain()[1], parts, linked)
        if done.returncode:
            raise ToolchainError(f"Linking a kernel failed:\n{done.stderr}")
        if target.mach_o and lines:
            _publish(parts[0], library.with_suffix(".o"))  # which holds the line table
        _publish(linked, library)
    return library


def check(text: str, entry: str, prelude: str):
    """Raises CompileError if a translated text does not compile; generates no machine code."""
    parts = [_sources_hash(), text, entry, prelude]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
    passed = cache_directory() / f"{key}.ok"
    if passed.exists():
        return
    passed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        flags, code = [*_KERNEL_FLAGS, *here().flags], Path(scratch) / "checked.ll"
        compile_text(flags, [*recursion.OUTPUT, "-o", str(code)], text, entry, _SHIM / prelude, Path(scratch), True)
        passed.touch()


# Clang's temporaries are in no address space, so a `const thread T&` does not bind to a value, as it does in Metal.
_UNBOUND = re.compile(
    "in default address space|to a temporary object because of address space|__global_host"
    "|cannot deduce a type for '[^']+' that would make '__private"
)
_BIND_VALUES = "-DMSL_VALUES_BIND"
# Members of an object in the generic address space do not bind to references of type thread.
_NOWHERE = re.compile("'(?:const )?__generic")
_THREAD_METHODS = "-DMSL_THREAD_METHODS"
_CONST_METHODS = "-DMSL_THREAD_CONST_METHODS"
# A value has no `const thread` methods.
_NO_OBJECT = re.compile(
    "'this' object is in default address space|cannot initialize object parameter of type 'const __private"
    "|invalid argument type '[^<]+' to unary expression"
)
_VALUES_HAVE_METHODS = "-DMSL_VALUES_HAVE_METHODS"
# x += c, where the class of c converts to a number.
_STEP = re.compile("no viable overloaded '[-+*/%]='|invalid operands to binary expression \\('[^<]")
_CLASS_STEPS = "-DMSL_CLASS_STEPS"
# v.x += 1 in a template, in a text that defines an operator +=: clang then considers functions only.
_PROPERTY = re.compile("invalid operands to binary expression .*'<pseudo-object type>'")
_PLAIN_COMPONENTS = "-DMSL_PLAIN_COMPONENTS"


def compile_text(
    flags: list[str], output: list[str], text: str, entry: str, prelude: Path, scratch: Path, often: bool = False
):
    """Runs the compiler on a translated text; raises CompileError if it refuses the text. output: flags for its output.

    often: the prelude, a header of the shim, is used with these flags repeatedly, and so is precompiled.

    If a text is refused because a value or a member does not bind to a reference, the compiler runs again with other
    definitions: of references to constants in every space, or of methods on objects of the thread.
    """
    source = scratch / "kernel.cl"
    source.write_text(f'#line 1 "metal"\n{text}\n#line 1 "entry"\n{entry}', encoding="utf-8")

    def run(flags: list[str], output: list[str], often: bool = often) -> subprocess.CompletedProcess:
        compiler, _, _ = toolchain()
        if often:
            headers = precompiled.arguments(compiler, flags, prelude.name, cache_directory(), _sources_hash())
            done = _run([*compiler, *flags, *output, *headers, str(source)])
            if not precompiled.damaged(done):
                return done
            precompiled.discard(cache_directory(), _sources_hash())
        return _run([*compiler, *flags, *output, "-I", str(INCLUDE), "-include", str(prelude), str(source)])

    keep = recursion.kept_in(scratch)
    done = run(flags, [*output, *keep])
    for more in _remedies(done):
        again = run([*flags, *more], [*output, *keep])
        if not again.returncode:
            done, flags = again, [*flags, *more]
            break
    messages.refuse(done, text, source)
    if shared_objects.possible(text):
        strict = run([*flags, _THREAD_METHODS, _CONST_METHODS], ["-fsyntax-only"])
        if message := shared_objects.called(strict.stderr):
            raise CompileError(messages.in_metal_terms(message, text, "metal"))
    if recursion.found(_code(scratch)):
        named, optimised = scratch / "named.ll", scratch / "optimised.ll"
        run(flags, [*recursion.OUTPUT, "-o", str(named)])
        run(flags, [*recursion.OPTIMISED, "-o", str(optimised)], often=False)
        code = named.read_text(encoding="utf-8")
        if not recursion.direct(code) and not recursion.found(optimised.read_text(encoding="utf-8")):
            return
        name, line = recursion.found(code)
        message = f"metal:{line}:1: error: Metal has no recursion: '{name}' calls itself"
        raise CompileError(messages.in_metal_terms(message, text, "metal"))


def _remedies(done: subprocess.CompletedProcess) -> Iterator[list[str]]:
    """Yields flags to try, one after another, on a text that was refused."""
    if not done.returncode:
        return
    said = {
        flag: bool(words.search(done.stderr))
        for flag, words in (
            (_CLASS_STEPS, _STEP), (_PLAIN_COMPONENTS, _PROPERTY), (_THREAD_METHODS, _NOWHERE),
            (_BIND_VALUES, _UNBOUND), (_VALUES_HAVE_METHODS, _NO_OBJECT),
        )
    }  # fmt: skip
    operators = [flag for flag in (_CLASS_STEPS, _PLAIN_COMPONENTS, _VALUES_HAVE_METHODS) if said[flag]]
    if said[_BIND_VALUES]:
        yield [*operators, _BIND_VALUES]
    if said[_THREAD_METHODS]:
        for spaces in ([_THREAD_METHODS], [_THREAD_METHODS, _CONST_METHODS]):
            yield [*operators, *spaces]
            yield [*operators, *spaces, _BIND_VALUES]
    if operators:
        yield operators
    if said[_CLASS_STEPS] and not said[_PLAIN_COMPONENTS]:  # the operators hide v.x += 1
        yield [_CLASS_STEPS, _PLAIN_COMPONENTS]


def _code(scratch: Path) -> str:
    """The LLVM text that the compiler wrote to `scratch`, before its passes or in place of an object."""
    (code,) = scratch.glob("*.ll")
    return code.read_text(encoding="utf-8")
