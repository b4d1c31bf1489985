"""Malicious pickles are stored and shown, and nothing in them is executed: the interpreter's audit hook would tell.

The gadgets are those that picklescan's tests name, and the classics; each is put together from opcodes here.

Source: https://github.com/mmaitre314/picklescan (tests/test_scanner.py, tests/init_data_files.py, and its advisories).
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import CommandLine
from tests.e2e.workshop import Workshop
from tests.unit.formats.torch_files import a_dict, archive, program, tensor

AUDITOR = Path(__file__).with_name("pickle_auditor.py")

# Module and name as a pickle has them.
_NAMES = """
os.system posix.system nt.system os.popen os.execv os.execvp os.spawnv os.posix_spawn os.fork os.remove os.startfile
pty.spawn builtins.eval builtins.exec builtins.compile builtins.getattr builtins.setattr builtins.globals
builtins.__import__ builtins.open builtins.breakpoint builtins.apply builtins.vars builtins.map builtins.type
__builtin__.eval __builtin__.exec __builtin__.execfile __builtin__.compile __builtin__.getattr __builtin__.globals
__builtin__.apply __builtin__.__import__ __builtin__.file subprocess.run subprocess.Popen subprocess.call
subprocess.check_output subprocess.getoutput commands.getoutput socket.create_connection socket.socket
http.client.HTTPSConnection httplib.HTTPSConnection requests.api.get aiohttp.client.ClientSession
urllib.request.urlopen urllib.request.urlretrieve urllib.urlopen webbrowser.open ssl.get_server_certificate
linecache.getline smtplib.SMTP ftplib.FTP sys.exit sys.modules sys.settrace pickle.loads pickle.load _pickle.loads
cPickle.loads marshal.loads dill.loads cloudpickle.loads joblib.load shelve.open types.CodeType types.FunctionType
types.LambdaType operator.attrgetter operator.methodcaller operator.itemgetter _operator.attrgetter functools.partial
functools.reduce importlib.import_module importlib._bootstrap._gcd_import runpy._run_code runpy.run_path
imp.load_source bdb.Bdb bdb.Bdb.run pdb.run code.InteractiveInterpreter.runcode code.interact codeop.compile_command
pip.main pip._internal.main venv.create ensurepip._run_pip torch.load torch.hub.load
torch._inductor.codecache.compile_file torch.serialization.load torch.storage._load_from_bytes
torch.utils.bottleneck.__main__.run_cprofile torch.utils.bottleneck.__main__.run_autograd_prof
torch._dynamo.guards.GuardBuilder.get torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression
torch.utils.collect_env.run torch.utils.collect_env.run_and_read_all
torch.utils.data.datapipes.utils.decoder.basichandlers torch.jit.unsupported_tensor_ops.execWrapper
torch.utils._config_module.ConfigModule.load_config torch.utils.cpp_extension.load_inline
torch.distributed.rpc.internal._run_function torch._C._jit_get_operation torch.ops.load_library torch.compile
torch.jit.load torch.jit._pickle.build_intlist torch.package.PackageImporter numpy.testing._private.utils.runstring
numpy.load numpy.f2py.crackfortran.myeval numpy.f2py.crackfortran.getlincoef pydoc.pipepager pydoc.locate
timeit.timeit timeit.Timer trace.Trace.run trace.Trace.runctx profile.Profile.run profile.Profile.runctx cProfile.run
cProfile.runctx doctest.debug_script unittest.main lib2to3.pgen2.grammar.Grammar.loads
lib2to3.pgen2.pgen.ParserGenerator.make_label idlelib.debugobj.ObjectTreeItem.SetText
idlelib.autocomplete.AutoComplete.get_entity idlelib.autocomplete.AutoComplete.fetch_completions
idlelib.calltip.Calltip.fetch_tip idlelib.calltip.get_entity idlelib.run.Executive.runcode
idlelib.pyshell.ModifiedInterpreter.runcommand idlelib.pyshell.ModifiedInterpreter.runcode
asyncio.unix_events._UnixSubprocessTransport._start asyncio.subprocess.create_subprocess_shell
distutils.file_util.write_file shutil.rmtree shutil.move shutil.copy pathlib.Path.write_text tempfile.mktemp
logging.config.fileConfig logging.FileHandler ctypes.CDLL ctypes.cdll.LoadLibrary cffi.FFI multiprocessing.Process
threading.Thread concurrent.futures.thread.ThreadPoolExecutor signal.raise_signal gc.get_objects
inspect.getattr_static copyreg.__newobj__ copyreg._reconstructor copy_reg._reconstructor collections.namedtuple
uuid._get_command_stdout _osx_support._read_output _aix_support._read_cmd_output _pyrepl.pager.pipe_pager
"""
GADGETS = _NAMES.split()

COMMAND = "touch {marker}"
CODE = "__import__('os').system('touch {marker}')"


def by_global(gadget: str, argument: str) -> bytes:
    """Protocol 2: the name is an opcode's argument."""
    module, _, name = gadget.rpartition(".")
    return pickle.PROTO + b"\2" + f"c{module}\n{name}\n".encode() + _text(argument) + b"\x85R."


def by_stack(gadget: str, argument: str) -> bytes:
    """Protocol 4: the names are on the stack; the payload hides between good tensors."""
    module, _, name = gadget.rpartition(".")
    call = _short(module) + _short(name) + b"\x93" + _text(argument) + b"\x85R"
    return program(a_dict(a=tensor(), b=call, c=tensor()))


def _text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def _short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _crafted(marker: str) -> dict[str, bytes]:
    """Return the pickles that picklescan's tests give byte by byte, and chains that hide what they call."""
    shell, code = COMMAND.format(marker=marker).encode(), CODE.format(marker=marker)
    attribute = _short("operator") + _short("attrgetter") + b"\x93" + _short("system") + b"\x85R"
    module = _short("builtins") + _short("__import__") + b"\x93" + _short("os") + b"\x85R"
    getattr_ = b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n" + _text("os") + b"\x85R" + _text("system") + b"tR"
    return {
        "sour": b"c__builtin__\nglobals\n(tRp100\n0c__builtin__\ncompile\n(S'x=1'\nS''\nS'exec'\ntRp101\n0c__builtin__\neval\n"
        b"(g101\ng100\ntRp102\n0c__builtin__\ngetattr\n(c__builtin__\ndict\nS'get'\ntRp103\n0c__builtin__\napply\n"
        b"(g103\n(g100\nS'x'\nltRp104\n0g104\n.",
        "inst": b"(" + _text(code) + b"i__builtin__\nexec\n.",
        "inst of texts": b"(S'" + shell + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + _text(shell.decode()) + b"o.",
        "newobj": b"\x80\2cos\nsystem\n" + _text(shell.decode()) + b"\x85\x81.",
        "newobj_ex": b"\x80\4cos\nsystem\n" + _text(shell.decode()) + b"\x85}\x92.",
        "names on the memo": b"Vos\np2\n0Vsystem\np3\n0Vtorch\np0\n0VLongStorage\np1\n0g2\ng3\n\x93(V"
        + shell
        + b"\ntR.",
        "names of bytes": b"S'os'\nS'system'\n\x93S'" + shell + b"'\n\x85R.",
        "attrgetter": b"\x80\4" + attribute + module + b"\x85R" + _text(shell.decode()) + b"\x85R.",
        "getattr": b"\x80\2" + getattr_ + _text(shell.decode()) + b"\x85R.",
        "memo without a value": b"\x80\4cos\nsystem\n" + _text(shell.decode()) + b"\x85R0\x8c\2os\x94h\3h\0\x93K\x42.",
        "a number for a name": b"\x80\4J\x2a\0\0\0\x94\x8c\2os\x94h\0h\1\x93K\x42.",
        "cut": b"cbuiltins\nexec\n(" + _text(code) + b"tRX.",
        "after the end": pickle.dumps(["a"]) + by_global("os.system", shell.decode()),
        "state": b"\x80\2ccollections\nOrderedDict\n)Rcos\nsystem\n" + _text(shell.decode()) + b"\x85Rb.",
        "state of a class": b"\x80\2cargparse\nNamespace\n)\x81}(X\x0c\0\0\0__setstate__cos\nsystem\nub"
        + _text(code)
        + b"b.",
        "extension": b"\x80\2\x82\1" + _text(code) + b"\x85R.",
        "persistent": b"P" + shell + b"\n.",
        "dotted name": b"\x80\4"
        + _short("torch")
        + _short("serialization.os.system")
        + b"\x93"
        + _text(code)
        + b"\x85R.",
        "type of a tensor": b"\x80\2ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n"
        + _text(shell.decode())
        + b"\x85}tR.",
        "default factory": b"\x80\2ccollections\ndefaultdict\ncos\nsystem\n\x85R.",
        "encode": b"\x80\2c_codecs\nencode\n(" + _text(code) + _text("rot13") + b"tRb.",
        "numpy": b"\x80\2cnumpy\ndtype\n"
        + _text("O")
        + b"\x85R(K\3"
        + _text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb.",
    }


def _payloads(marker: str) -> dict[str, bytes]:
    made = {}
    for gadget in GADGETS:
        argument = (CODE if "eval" in gadget or "exec" in gadget or "run" in gadget else COMMAND).format(marker=marker)
        made[f"{gadget}.global"] = by_global(gadget, argument)
        made[f"{gadget}.stack"] = by_stack(gadget, argument)
    return made | _crafted(marker)


class Audit:
    """What the auditor reported, and the folder that no payload may have written in."""

    def __init__(self, report: dict[str, Any], payloads: dict[str, bytes], marked: Path) -> None:
        self.report = report
        self.payloads = payloads
        self.marked = marked

    def step(self, name: str) -> Any:
        return self.report[name]


def _audit(folder: Path, payloads: dict[str, bytes], mode: str, store: Path) -> dict[str, Any]:
    for kind, files in (
        ("bad", payloads),
        ("good", {"x": program(a_dict(x=tensor()))}),
        ("again", {"y": program(a_dict(x=tensor(), y=tensor())), "z": b"cbroken.\n"}),
    ):
        (folder / kind).mkdir()
        for name, data in files.items():
            (folder / kind / f"{name}.pt").write_bytes(archive(data))
    ended = subprocess.run(
        [sys.executable, AUDITOR, mode, folder, store], capture_output=True, text=True, timeout=280, check=False
    )
    assert ended.returncode == 0, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Every payload's structure read in one process, then all of them pushed and shown there."""
    folder = tmp_path_factory.mktemp("malicious")
    (folder / "marked").mkdir()
    payloads = _payloads(f"{folder}/marked/x")
    workshop = Workshop(folder, devices=1)
    workshop.close()
    return Audit(_audit(folder, payloads, "handle", Path(workshop.location)), payloads, folder / "marked")


def test_reading_the_structure_of_malicious_files_does_nothing_but_read_them(audit: Audit) -> None:
    assert len(audit.payloads) > 300
    for name in audit.payloads:
        events = audit.step(f"{name}.pt")["events"]
        assert events, name  # the hook was there
        others = [event for event in events if not event.startswith(("open read ", "builtins.id "))]
        assert others == [], name
        opened = [event for event in events if event.startswith("open ")]
        assert all(event.endswith(f"/bad/{name}.pt") for event in opened), name


def test_every_malicious_file_is_opaque_and_names_what_it_needs(audit: Audit) -> None:
    for gadget in GADGETS:
        for way in ("global", "stack"):
            format_name, tensors, note = audit.step(f"{gadget}.{way}.pt")["result"]
            assert (format_name, tensors) == ("opaque", [])
            assert note == f"its pickle needs {gadget}"
    for name in _crafted(""):
        format_name, tensors, note = audit.step(f"{name}.pt")["result"]
        assert tensors == []
        harmless = name in ("after the end", "numpy", "state of a class")  # what would be called is data here
        assert format_name == ("pytorch" if harmless and not note else "opaque"), name


_EVENTS = """
exec compile import marshal.loads pickle.find_class code.__new__ ctypes socket os.system os.exec os.fork
os.posix_spawn os.spawn os.startfile subprocess pty shutil urllib webbrowser sys.settrace builtins.breakpoint
builtins.input
"""
HARMFUL = tuple(_EVENTS.split())
"""How events begin that a payload would cause, and that neither a push nor a show does once their modules are imported."""


@pytest.mark.parametrize("step", ["push", "show", "load"])
def test_storing_and_showing_malicious_files_executes_nothing(step: str, audit: Audit) -> None:
    found = audit.step(step)
    assert isinstance(found["result"], int) or found["result"][0] == 0, found["result"]
    assert found["events"]
    harmful = [event for event in found["events"] if event.startswith(HARMFUL)]
    assert harmful == []
    store = str(audit.marked.parent)
    written = [event for event in found["events"] if event.startswith("open write ")]
    assert [event for event in written if store not in event and "/tensorkeep/" not in event] == []


def test_no_payload_left_a_mark(audit: Audit) -> None:
    assert list(audit.marked.iterdir()) == []


def test_the_auditor_sees_what_a_pickle_executes(tmp_path: Path) -> None:
    (tmp_path / "marked").mkdir()
    shell = COMMAND.format(marker=f"{tmp_path}/marked/x")
    payloads = {"system": by_global("os.system", shell), "eval": by_global("builtins.eval", "6 * 7")}
    report = _audit(tmp_path, payloads, "unpickle", tmp_path)
    assert report["eval.pt"]["result"] == "42"
    for name, event in (("system.pt", "os.system"), ("eval.pt", "compile"), ("eval.pt", "exec")):
        assert any(seen.startswith(event) for seen in report[name]["events"])
        assert any(seen.startswith("pickle.find_class") for seen in report[name]["events"])
    assert [path.name for path in (tmp_path / "marked").iterdir()] == ["x"]


def test_the_command_line_stores_a_malicious_file_and_gives_it_back(command_line: CommandLine, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    data = archive(by_global("os.system", COMMAND.format(marker=marker)))
    (tmp_path / "evil.pt").write_bytes(data)
    command_line("push", tmp_path / "evil.pt", "acme/evil")
    assert command_line("show", "acme/evil", "--json").json["files"][0]["format"] == "opaque"
    command_line("pull", "acme/evil", tmp_path / "out")
    assert (tmp_path / "out" / "evil.pt").read_bytes() == data
    assert not marker.exists()
