"""Whether a build of vLLM can run on this machine, found out before anything is started.

Only what is certain to fail is refused: where there is doubt, vLLM tries, and its log tells. Nothing is remembered: a
driver that is installed later is found by the next call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared_engine.launch.interpreter import (
    INSTALL_COMMAND,
    Torch,
    find_torch,
    has_platform_plugin,
    inspect_interpreter,
)
from shared_engine.machine.nvidia import (
    NO_DEVICE,
    OLDEST_DRIVER,
    OTHER_RELEASE,
    SUCCESS,
    Driver,
    ask_driver,
    looks_usable,
)
from shared_engine.parallelism import Parallelism, args_of
from shared_engine.runtime.spec import EngineSpec

CPU_INSTEAD = f"run `{INSTALL_COMMAND} --cpu`"
VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
# With these in its environment, vLLM brings CUDA for an older driver itself, or runs on something else.
_COMPATIBILITY_VARIABLE, _TARGET_VARIABLE = "VLLM_ENABLE_CUDA_COMPATIBILITY", "VLLM_TARGET_DEVICE"


@dataclass(frozen=True)
class Misfit:
    """Why a build can't run here.

    Attributes:
        remedy: what to do; it has the command, where there is one.
    """

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


def misfit_of(spec: EngineSpec, environment: Mapping[str, str], *, thorough: bool = False) -> Misfit | None:
    """Why the engine of ``spec`` can't run here; None where it can, or where only vLLM can tell.

    Takes about a millisecond where the GPUs are there, else as long as asking the driver takes.

    Args:
        environment: that the engine would be started in, but for its own variables.
        thorough: ask the driver even where its files leave no doubt: they do not tell everything.
    """
    interpreter, parallelism = inspect_interpreter(spec.python), Parallelism.of(args_of(spec.argv))
    environment = {**environment, **spec.environment}
    is_cuda = interpreter is not None and interpreter.build == "cuda" and environment.get(_TARGET_VARIABLE) != "cpu"
    if not is_cuda or parallelism.here == 0:
        return None
    torch, visible = find_torch(spec.python), environment.get(VISIBLE_VARIABLE)
    has_cuda = torch is None or torch.cuda is not None
    if has_cuda and not thorough and looks_usable(visible, parallelism.here, cuda_major(torch)):
        return None
    if has_platform_plugin(spec.python):
        return None
    if torch is not None and not has_cuda:
        return without_cuda(torch)
    driver = ask_driver(spec.python, environment)
    if driver is None:
        return None
    brings_cuda = environment.get(_COMPATIBILITY_VARIABLE, "0") not in ("", "0")
    return misfit_with(driver, None if brings_cuda else cuda_major(torch), parallelism, visible)


def cuda_major(torch: Torch | None) -> int | None:
    """The major version of CUDA that this torch needs; None if that is not known."""
    major = ((torch.cuda if torch is not None else None) or "").partition(".")[0]
    return int(major) if major.isdigit() else None


def without_cuda(torch: Torch) -> Misfit:
    """Of an environment with vLLM's CUDA build."""
    return Misfit(
        f"vLLM's CUDA build has a torch without CUDA beside it, {torch.version}",
        f"run `{INSTALL_COMMAND} --cuda`, or install torch {torch.version.partition('+')[0]} from another index there",
    )


def misfit_with(driver: Driver, cuda: int | None, parallelism: Parallelism, visible: str | None) -> Misfit | None:
    """Decide by what the driver has shown.

    Args:
        cuda: the major version that torch needs, None where any will do.
        parallelism: of the engine.
        visible: CUDA_VISIBLE_DEVICES, None where it is not set.
    """
    if driver.usable == 0:
        return _without_gpu(driver, visible)
    if cuda is not None and driver.cuda is not None and driver.cuda[0] < cuda:
        oldest = OLDEST_DRIVER.get(cuda)
        newest = ".".join(map(str, driver.cuda))
        return Misfit(
            f"the NVIDIA driver {driver.release} is too old: it runs CUDA {newest}, and this build of vLLM has {cuda}",
            f"install {f'driver {oldest} or newer' if oldest else 'a newer driver'}, or {CPU_INSTEAD}",
        )
    if parallelism.here > driver.usable:
        return Misfit(f"{parallelism.needs('GPUs')}; {driver.usable} can be used{_under(visible)}", parallelism.lower)
    return None


def _without_gpu(driver: Driver, visible: str | None) -> Misfit | None:
    if driver.nvml_code in OTHER_RELEASE or driver.cuda_code in OTHER_RELEASE:
        reason = f"the NVIDIA driver in the kernel ({driver.release}) and its libraries are of different releases"
        return _no_gpu(reason, "restart the machine (or the container), as after every update of the driver")
    if not driver.gpus and not driver.release and (driver.nvml_code, driver.cuda_code) != (None, None):
        return _no_gpu(
            "the NVIDIA driver is installed, but not loaded", "restart the machine, or `sudo modprobe nvidia`"
        )
    if not driver.gpus and driver.release:
        reason = f"the NVIDIA driver {driver.release} runs, but shows no GPU to this process"
        return _no_gpu(reason, f"start the container with its GPUs (`docker run --gpus all ...`), or {CPU_INSTEAD}")
    if not driver.gpus:
        return _no_gpu("this machine has no NVIDIA driver", f"{CPU_INSTEAD}, or install the driver")
    if driver.cuda_code is None:
        reason = f"libcuda.so.1, a library of the NVIDIA driver {driver.release}, was not found"
        return _no_gpu(reason, "start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility, or add it")
    if driver.cuda_code not in (SUCCESS, NO_DEVICE):
        return None  # it may pass
    if visible is not None:
        here = _count(len(driver.gpus))
        return _no_gpu(f"there are {here}, but none{_under(visible)}", 'unset it, or pass visible_devices="0"')
    if driver.in_mig_mode:
        reason = f"{_count(driver.in_mig_mode)} in MIG mode, without an instance"
        return _no_gpu(reason, "make one (`nvidia-smi mig -cgi PROFILE -C`), or end the mode (`nvidia-smi -mig 0`)")
    return None


def _no_gpu(reason: str, remedy: str) -> Misfit:
    return Misfit(f"no usable GPU: {reason}", remedy)


def _under(visible: str | None) -> str:
    return "" if visible is None else f" with {VISIBLE_VARIABLE}={visible!r}"


def _count(gpus: int) -> str:
    return f"{gpus} GPU{'s' if gpus > 1 else ''}"
