from decentral.exchange.progress import Progress
from decentral.types import SyncKey


def test_progress_only_goes_forward_except_after_a_download() -> None:
    progress = Progress(2)
    assert progress.num_fragments == 2
    assert progress.rounds() == (0, 0)
    progress.finish(SyncKey(4, 1))
    progress.finish(SyncKey(3, 1))
    assert progress.rounds() == (0, 5)
    assert progress.next_round(1) == 5
    progress.resume((2, 3))
    assert progress.rounds() == (2, 3)
