import numpy as np
import pytest

from decentral.errors import DataError
from decentral.workers.lm import corpus as corpus_module
from decentral.workers.lm.corpus import SEPARATOR, is_held_out, load_corpus


def _write(folder, names, size: int = 100):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode().ljust(size, b"."))
    return folder


@pytest.fixture
def folder(tmp_path):
    return _write(tmp_path, [f"part{index % 3}/text{index}.txt" for index in range(60)])


def test_files_are_held_out_by_their_relative_names(folder) -> None:
    corpus = load_corpus((str(folder),), 50)
    held_out = corpus.held_out.tobytes()
    for index in range(60):
        name = f"part{index % 3}/text{index}.txt"
        assert (name.encode() + b"." in held_out) == is_held_out(name)
        assert (name.encode() + b"." in corpus.train.tobytes()) != is_held_out(name)
    assert corpus.num_files == 60


def test_about_a_tenth_is_held_out() -> None:
    share = np.mean([is_held_out(f"name{index}.py") for index in range(5000)])
    assert 0.08 < share < 0.12


def test_folder_and_pattern_hold_out_the_same(folder) -> None:
    by_folder = load_corpus((str(folder),), 50)
    by_pattern = load_corpus((f"{folder}/**/*.txt",), 50)
    assert by_folder.held_out_digest() == by_pattern.held_out_digest()
    assert by_folder.num_files == by_pattern.num_files


def test_a_file_given_twice_is_read_once(folder) -> None:
    once, twice = load_corpus((str(folder),), 50), load_corpus((str(folder), f"{folder}/**/*"), 50)
    assert len(once.train) == len(twice.train)


def test_hidden_binary_and_unreadable_entries_of_a_folder_are_left_out(folder) -> None:
    _write(folder, [".hidden/secret.txt", ".secret"])
    (folder / "image.bin").write_bytes(b"\x89PNG\0\0")
    (folder / "lost").symlink_to(folder / "nowhere")
    corpus = load_corpus((str(folder),), 50)
    assert corpus.num_files == 60
    assert corpus.num_skipped == 2
    assert b"secret" not in corpus.train.tobytes() + corpus.held_out.tobytes()
    assert "2 skipped" in corpus.describe()


def test_the_tail_of_a_single_file_is_held_out(tmp_path) -> None:
    text = bytes(range(1, 101)) * 10
    (tmp_path / "one.txt").write_bytes(text)
    corpus = load_corpus((str(tmp_path / "one.txt"),), 50)
    assert corpus.train.tobytes() == bytes([SEPARATOR]) + text[:900]
    assert corpus.held_out.tobytes() == bytes([SEPARATOR]) + text[900:]


def test_batches_repeat_by_seed_and_step_and_differ_otherwise(folder) -> None:
    corpus = load_corpus((str(folder),), 50)
    first = corpus.batch(7, 3, 4, 20)
    assert first.shape == (4, 20)
    assert first.equal(corpus.batch(7, 3, 4, 20))
    assert not first.equal(corpus.batch(7, 4, 4, 20))
    assert not first.equal(corpus.batch(8, 3, 4, 20))
    train = corpus.train.tobytes()
    assert all(bytes(window.tolist()) in train for window in first)


def test_held_out_batches_span_the_held_out_text(folder) -> None:
    corpus = load_corpus((str(folder),), 50)
    first, last = corpus.held_out_batch(0, 3, 4, 20), corpus.held_out_batch(2, 3, 4, 20)
    assert bytes(first[0].tolist()) == corpus.held_out[:20].tobytes()
    assert bytes(last[-1].tolist()) == corpus.held_out[-20:].tobytes()


def test_the_default_corpus_is_the_standard_library() -> None:
    corpus = load_corpus((), 257)
    assert corpus.num_files > 200
    assert b"def " in corpus.train[:100_000].tobytes()
    assert len(corpus.held_out) < 0.3 * len(corpus.train)


@pytest.mark.parametrize(
    ("make", "data", "message", "hint"),
    [
        (lambda root: None, "missing.txt", "does not exist", "local to each machine"),
        (lambda root: None, "*.txt", "no file matches", "**"),
        (
            lambda root: (root / "few.txt").write_bytes(b"short"),
            "few.txt",
            "5 bytes of text in 1 files",
            "at least 550",
        ),
        (lambda root: (root / "none").mkdir(), "none", "0 bytes of text in 0 files", "at least 550"),
        (lambda root: (root / "a.bin").write_bytes(b"a\0b"), "a.bin", "is not text", "UTF-8"),
    ],
)
def test_unusable_data_is_explained(tmp_path, make, data: str, message: str, hint: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError) as caught:
        load_corpus((str(tmp_path / data),), 50)
    assert message in caught.value.message
    assert str(tmp_path / data) in caught.value.message
    assert hint in caught.value.hint


def test_a_file_that_cannot_be_read_is_an_error_only_if_it_was_named(folder, monkeypatch) -> None:
    fromfile = np.fromfile

    def guarded(path, dtype):
        if path.name == "text5.txt":
            raise PermissionError(13, "Permission denied")
        return fromfile(path, dtype)

    monkeypatch.setattr(np, "fromfile", guarded)
    assert load_corpus((str(folder),), 50).num_skipped == 1
    with pytest.raises(DataError, match=r"text5\.txt.*Permission denied"):
        load_corpus((str(folder / "part2/text5.txt"),), 50)


def test_a_corpus_beyond_the_limit_is_refused_before_it_is_read(folder, monkeypatch) -> None:
    monkeypatch.setattr(corpus_module, "MAX_TOTAL_BYTES", 1000)
    with pytest.raises(DataError, match="more than"):
        load_corpus((str(folder),), 50)
