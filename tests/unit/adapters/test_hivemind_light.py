"""In processes of their own: what is imported first decides."""

import subprocess
import sys

import pytest


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_adapters_load_neither_torch_nor_the_rest_of_hivemind() -> None:
    run(
        "import sys, logging\n"
        "import decentral.adapters\n"
        "assert 'decentral.adapters.hivemind_light' not in sys.modules\n"
        "import decentral.adapters.node, decentral.adapters.probe\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "assert 'hivemind.optim' not in sys.modules\n"
        "assert not logging.getLogger('hivemind').handlers\n"
    )


@pytest.mark.slow
def test_the_whole_of_hivemind_can_be_had_later_with_the_same_classes() -> None:
    run(
        "import decentral.adapters.hivemind_light as light\n"
        "import hivemind, hivemind.utils\n"
        "from hivemind import DHT, Optimizer\n"
        "assert hivemind.p2p.P2P is light.P2P\n"
        "assert hivemind.dht.DHTNode is light.DHTNode\n"
        "assert hivemind.utils.MPFuture and hivemind.__version__\n"
        "try:\n"
        "    hivemind.no_such_name\n"
        "except AttributeError:\n"
        "    pass\n"
        "else:\n"
        "    raise AssertionError\n"
    )


@pytest.mark.slow
def test_a_hivemind_that_is_there_already_is_left_alone() -> None:
    run(
        "import sys, types\n"
        "import hivemind.utils.logging\n"
        "before = {name: module for name, module in sys.modules.items() if name.startswith('hivemind')}\n"
        "import decentral.adapters.hivemind_light as light\n"
        "assert all(sys.modules[name] is module for name, module in before.items())\n"
        "assert type(sys.modules['hivemind']) is types.ModuleType\n"
        "assert sys.modules['hivemind'].DHT\n"
    )
