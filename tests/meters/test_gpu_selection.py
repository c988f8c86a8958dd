import itertools

import pytest

from policies.core.errors import ConfigError, MeterUnavailable
from serve_app.meters.gpu_selection import GpuIdentity, MigInstance, select_gpus, visible_gpus

GPUS = tuple(
    GpuIdentity(index=i, uuid=f"GPU-{prefix}-0000", name="H100")
    for i, prefix in enumerate(("aa11", "aa22", "bb33"))
)


def shown(visible, gpus=GPUS, pci_order=False):
    chosen = visible_gpus(gpus, visible, pci_order=pci_order)
    return [gpu.entry if isinstance(gpu, MigInstance) else gpu.index for gpu in chosen]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2,0", [2, 0]),
        (" 1 , 2", [1, 2]),
        ("0,7,1", [0]),  # what follows an invalid entry is not visible
        ("1,1", []),  # a repeated entry empties the list
        ("1,2,1", []),
        ("0,7,0", []),
        ("GPU-aa1,GPU-aa11", []),
        ("1gpu,+2x", [1, 2]),  # CUDA reads the number that an entry begins with
        ("GPU-bb33-0000", [2]),
        ("gpu-BB", [2]),
        ("GPU-aa", []),  # names two
        ("GPU-aa2,GPU-bb", [1, 2]),
        ("GPU-zz,0", []),
        ("GPU-bb,0", [2]),  # the forms do not mix
        ("0,GPU-bb", [0]),
        ("MIG-123,0", ["MIG-123"]),
        ("MIG-1,MIG-2", ["MIG-1", "MIG-2"]),
        ("MIG-GPU-aa11-0000/1/0", ["MIG-GPU-aa11-0000/1/0"]),
    ],
)
def test_cuda_rules(visible, expected):
    assert shown(visible) == expected


@pytest.mark.slow
def test_the_rules_are_those_of_pytorch(monkeypatch):
    """PyTorch reproduces what CUDA does with the variable; it is the oracle for lists at random."""
    cuda = pytest.importorskip("torch.cuda")
    entries = ["0", "1", "2", "7", "-1", "", "+1", "1x", "x", "GPU-aa1", "GPU-bb", "GPU-", "MIG-1"]
    uuids = [gpu.uuid for gpu in GPUS]
    for length in (1, 2, 3):
        for listed in itertools.product(entries, repeat=length):
            visible = ",".join(listed)
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
            theirs = cuda._parse_visible_devices()
            if theirs and isinstance(theirs[0], str) and theirs[0].startswith("GPU-"):
                theirs = cuda._transform_uuid_to_ordinals(theirs, uuids)
            elif theirs and isinstance(theirs[0], int):
                theirs = list(itertools.takewhile(lambda index: index < len(GPUS), theirs))
            assert shown(visible, pci_order=True) == theirs, visible


def test_indices_over_different_models_need_pci_order():
    mixed = (*GPUS, GpuIdentity(index=3, uuid="GPU-cc44", name="L4"))
    with pytest.raises(MeterUnavailable, match="PCI_BUS_ID"):
        shown("3", mixed)
    assert shown("3", mixed, pci_order=True) == [3]
    assert shown("GPU-cc", mixed) == [3]
    assert shown("3,2,1,0", mixed) == [3, 2, 1, 0]  # all of them: the order does not matter


def test_explicit_list_is_strict():
    assert [g.index for g in select_gpus(GPUS, ["GPU-bb33-0000", "0", "2"])] == [2, 0]
    for wrong in ("5", "1x", "", "GPU-aa"):
        with pytest.raises(ConfigError, match=rf"'{wrong}'.*allowed: 0 \(GPU-aa11-0000\)"):
            select_gpus(GPUS, [wrong])
