"""How access to each meter is granted: the commands, written once.

`docs/metering.md` shows the same commands; its test compares.
"""

from __future__ import annotations

from pathlib import Path

from serve_app.doctor.host import Host

# RAPL resolves what other processes compute (CVE-2020-8694, "PLATYPUS"), so the kernel shows it to
# root alone. Whoever grants it decides that for the whole host.
WHY_ROOT_ONLY = "root-only since CVE-2020-8694: its reader can spy on other processes"

RAPL_ONCE = "sudo chmod a+r /sys/class/powercap/*-rapl:*/energy_uj"
_UDEV_RULE = (
    'ACTION=="add", SUBSYSTEM=="powercap", KERNEL=="*-rapl:*", '
    'RUN+="/bin/chmod a+r /sys%p/energy_uj"'
)
RAPL_UDEV = (
    f"echo '{_UDEV_RULE}' | sudo tee /etc/udev/rules.d/70-rapl.rules",
    "sudo udevadm control --reload && sudo udevadm trigger --subsystem-match=powercap --action=add",
)
_TMPFILES_RULES = "z /sys/devices/virtual/powercap/%s/energy_uj 0444 - - -\\n"
RAPL_TMPFILES = (
    f"printf '{_TMPFILES_RULES}' '*/*' '*/*/*' | sudo tee /etc/tmpfiles.d/rapl.conf",
    "sudo systemd-tmpfiles --create /etc/tmpfiles.d/rapl.conf",
)
RAPL_CAPABILITY = (
    'sudo setpriv --reuid="$USER" --regid="$(id -g)" --init-groups '
    "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search COMMAND"
)
RAPL_MODULE = "sudo modprobe intel_rapl_msr"

# Container runtimes mask this directory after all mounts are made, so a mount over the same path,
# or of the links in /sys/class/powercap, shows nothing: it has to appear at another path.
MASKED = "/sys/devices/virtual/powercap"
MOUNT_POINT = "/host/powercap"
RAPL_DOCKER = f"docker run -v {MASKED}/intel-rapl:{MOUNT_POINT}:ro ..."
RAPL_POD = (
    f"pod volumes: [{{name: powercap, hostPath: {{path: {MASKED}/intel-rapl, type: Directory}}}}]",
    f"container volumeMounts: [{{name: powercap, mountPath: {MOUNT_POINT}, readOnly: true}}]",
    "container securityContext: {runAsUser: 0}, or make energy_uj readable on the node",
)

GPU_DOCKER = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility ..."
GPU_POD = (
    "pod runtimeClassName: nvidia; container resources: {limits: {nvidia.com/gpu: 1}}",
    "container env: [{name: NVIDIA_DRIVER_CAPABILITIES, value: 'compute,utility'}]",
)

AGENT_GROUP = 'sudo usermod --append --groups jouleserve "$USER"   # then log in anew'
AGENT_START = (
    "sudo groupadd --system jouleserve",
    "sudo jouleserve power-agent --group jouleserve   # or configs/systemd/",
    AGENT_GROUP,
)
_KUBERNETES = "configs/kubernetes/base"
AGENT_POD = (
    f"kubectl apply -f {_KUBERNETES}/namespace.yaml -f {_KUBERNETES}/power-agent.yaml",
    "pod volumes: [{name: power, hostPath: {path: /run/jouleserve, type: Directory}}]",
    "container volumeMounts: [{name: power, mountPath: /run/jouleserve}]",
    "pod securityContext: {supplementalGroups: [2450]}",
)


def rapl_permission(host: Host) -> tuple[str, ...]:
    """What makes `energy_uj` readable: now, at every boot, or for one process alone."""
    where = "on the node: " if host.container else ""
    return (
        f"{where}{RAPL_ONCE}   # until the next boot",
        *(f"{where}{command}   # at every boot" for command in RAPL_UDEV),
        f"{where}{RAPL_CAPABILITY}   # instead: one command alone, for everything root can read",
    )


def rapl_container(host: Host, powercap_root: Path) -> tuple[str, ...]:
    """What brings the counters into a container. Looked for: in `powercap_root`."""
    check = f"jouleserve doctor --powercap-root {MOUNT_POINT}   # looked in {powercap_root}"
    steps = RAPL_POD if host.container == "kubernetes" else (RAPL_DOCKER,)
    return (*steps, check)


def gpu_library(host: Host) -> tuple[str, ...]:
    """What brings libnvidia-ml.so.1 to this process."""
    if host.container is None:
        return ("install the user-space part of the NVIDIA driver", "nvidia-smi   # checks it")
    return GPU_POD if host.container == "kubernetes" else (GPU_DOCKER,)
