"""An edit on several devices: a process for each, which all make the same steps, each of views of its own.

The first process is the one that the user has started. It alone has the run's lock, and shows and saves; it starts the
others and ends them. What they tell each other of a step goes through pipes, so that the end of a process is known at
once, and a pause lasts as long as it will. Gradients are summed by torch.distributed. They are not left to its
DistributedDataParallel: that reduces what goes through its own forward pass, once a step, and an edit renders a view in
many passes, checkpointed, of parameters whose number may grow.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import torch
import torch.distributed
from torch import Tensor
from torch.nn import Parameter
from tqdm import tqdm

from cds_nerf.diffusion.memory import is_out_of_memory
from cds_nerf.errors import TRACEBACK, UserError, told_as_bug
from cds_nerf.nerf import compatibility

LOCALHOST = "127.0.0.1"
SECONDS_BETWEEN_LOOKS = 0.0005
"""How long a process waits for a sum before it looks again whether all are there."""
SECONDS_TO_END = 5.0
"""How long a process that is done may take to end before it is ended."""


class DeviceError(UserError):
    """A process of an edit on several devices has ended before the edit."""


@dataclass(frozen=True)
class _NotFinite:
    """What a process says in place of something that is not finite in its views."""

    reason: str


@dataclass(frozen=True)
class _Failure:
    """The last that a process says: what has ended it."""

    kind: type[BaseException]
    message: str

    @classmethod
    def of(cls, error: BaseException) -> _Failure:
        if is_out_of_memory(error):
            return cls(MemoryError, str(error))
        if isinstance(error, FloatingPointError):
            return cls(FloatingPointError, str(error))
        if isinstance(error, UserError):
            return cls(UserError, str(error))
        return cls(DeviceError, told_as_bug(error))


class Devices:
    """The processes of an edit, one a device, as one of them sees them; without arguments the only one.

    Args:
        rank: which one this is, from 0.
        number: of all.
        links: to the others, for the first; to the first, for another.
        processes: the others, for the first.
    """

    def __init__(
        self,
        rank: int = 0,
        number: int = 1,
        links: Sequence[Connection] = (),
        processes: Sequence[BaseProcess] = (),
    ) -> None:
        self.rank = rank
        self.number = number
        self._links = links
        self._processes = processes
        self._undecided = False

    @classmethod
    def start(cls, config: Any) -> Devices:
        """Start the other processes of an edit, as its first one.

        Args:
            config: of the edit, settled; `machine.num_devices` says how many there are.
        """
        number = config.machine.num_devices
        context = multiprocessing.get_context("spawn")
        links, processes = [], []
        with _signals_ignored():  # which the first process gets, and answers for all
            for rank in range(1, number):
                link, far_end = context.Pipe()
                process = context.Process(target=_edit, args=(config, rank, number, far_end), daemon=True)
                process.start()
                far_end.close()
                links.append(link)
                processes.append(process)
        devices = cls(0, number, links, processes)
        atexit.register(devices.close)
        return devices

    @property
    def is_first(self) -> bool:
        """Whether this is the process that shows and saves."""
        return self.rank == 0

    def join(self, device_type: str) -> None:
        """Be ready to sum; to be called by all, before anything else.

        Raises:
            DeviceError: if another process has ended.
        """
        if self.number == 1:
            return
        store = None
        if self.is_first:
            store = torch.distributed.TCPStore(LOCALHOST, 0, self.number, is_master=True, wait_for_workers=False)
        port = self.from_first(store.port if store is not None else None)
        if store is None:
            store = torch.distributed.TCPStore(LOCALHOST, port, self.number, is_master=False, wait_for_workers=False)
        if device_type == "cuda":
            torch.cuda.set_device(self.rank)
        tell_error = sys.excepthook
        torch.distributed.init_process_group(
            "nccl" if device_type == "cuda" else "gloo", store=store, rank=self.rank, world_size=self.number
        )
        sys.excepthook = tell_error  # in place of torch's, which puts [rank0] before each line

    def begin_step(self) -> None:
        """From here on until the gradients are summed, a process may leave out the step for all."""
        self._undecided = True

    def exchange(self, value: Any) -> list[Any]:
        """What all processes give here, in their order; each waits for all others.

        Args:
            value: what this one gives; small, and to be pickled.

        Raises:
            FloatingPointError: if one of them leaves out the step.
            DeviceError: if one has ended.
            UserError: if one has ended for something that the user can mend.
        """
        if self.number == 1:
            return [value]
        if self.is_first:
            values = [value, *(self._receive(rank) for rank in range(1, self.number))]
            for rank, link in enumerate(self._links, start=1):
                try:
                    link.send(values)
                except OSError:
                    self._raise_lost(rank)
        else:
            self._links[0].send(value)
            values = self._links[0].recv()
        for value in values:
            if isinstance(value, _NotFinite):
                self._undecided = False
                raise FloatingPointError(value.reason)
        return values

    def from_first(self, value: Any) -> Any:
        """What the first process gives, whatever the others have.

        Raises:
            FloatingPointError, UserError: as `exchange`.
        """
        return self.exchange(value)[0]

    def share(
        self, losses: dict[str, Tensor], metrics: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses with the gradients of this process's views and the values of all views, and the last one's metrics.

        Args:
            losses: of this process's views, each a share of the step's, on one device.
            metrics: of the last of this process's views.

        Raises:
            FloatingPointError, UserError: as `exchange`.
        """
        if self.number == 1:
            return losses, metrics
        known = losses | metrics
        device = next(iter(losses.values())).device
        values = torch.stack([value.detach().float().to(device) for value in known.values()]).tolist()  # one wait
        of_all = self.exchange(dict(zip(known, values, strict=True)))
        totals = {name: sum(one[name] for one in of_all) for name in losses}
        losses = {name: loss + (totals[name] - loss.detach()) for name, loss in losses.items()}
        return losses, {name: torch.tensor(of_all[-1][name]) for name in metrics}

    def leave_out(self, error: FloatingPointError) -> None:
        """Let all processes leave out the step that this one has to leave out, where they do not know it yet."""
        if self._undecided:
            with suppress(FloatingPointError):
                self.exchange(_NotFinite(str(error)))

    def sum_gradients(self, parameters: Sequence[Parameter]) -> None:
        """Give each parameter the sum of the gradients that all processes have for it, if any has one.

        Raises:
            FloatingPointError, UserError: as `exchange`.
        """
        if self.number == 1:
            return
        with_gradient = self.exchange([parameter.grad is not None for parameter in parameters])
        self._undecided = False
        gradients = []
        for parameter, *have in zip(parameters, *with_gradient, strict=True):
            if any(have):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        self.sum(gradients)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all processes, in place.

        Raises:
            DeviceError: if a process has ended.
        """
        if self.number == 1:
            return
        try:
            sums = [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
            for one in sums:
                assert one is not None
                while not one.is_completed():
                    self._check_all_are_there()
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                one.wait()
        except RuntimeError:
            self._check_all_are_there(SECONDS_TO_END)
            raise

    def close(self) -> None:
        """End the other processes, of the first one; once is enough."""
        atexit.unregister(self.close)
        lost = any(process.exitcode for process in self._processes)
        for process in self._processes:
            process.kill()
            process.join()
        for link in self._links:
            link.close()
        if self._processes and torch.distributed.is_initialized() and not (lost and _backend() == "nccl"):
            torch.distributed.destroy_process_group()
        self.rank, self.number, self._links, self._processes = 0, 1, (), ()

    def _check_all_are_there(self, seconds: float = 0) -> None:
        ended = wait([process.sentinel for process in self._processes], timeout=seconds)
        for rank, process in enumerate(self._processes, start=1):
            if process.sentinel in ended:
                self._raise_lost(rank)

    def _receive(self, rank: int) -> Any:
        try:
            message = self._links[rank - 1].recv()
        except (EOFError, OSError):
            self._raise_lost(rank)
        if isinstance(message, _Failure):
            self._raise_failure(rank, message)
        return message

    def _raise_lost(self, rank: int) -> NoReturn:
        link, process = self._links[rank - 1], self._processes[rank - 1]
        with suppress(EOFError, OSError):
            while link.poll():
                if isinstance(message := link.recv(), _Failure):
                    self._raise_failure(rank, message)
        process.join(SECONDS_TO_END)
        code = process.exitcode
        how = f"with status {code}"
        if code is not None and code < 0:
            how = f"by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += ", most likely for want of memory"
        raise DeviceError(f"the process of device {rank} was ended {how}")

    def _raise_failure(self, rank: int, failure: _Failure) -> NoReturn:
        if failure.kind is DeviceError:
            raise DeviceError(f"the process of device {rank} has failed with {failure.message}")
        raise failure.kind(failure.message)


def device_of(name: str | None, rank: int) -> str | None:
    """The device of a process, where the user has named that of the first: the next ones are the others'.

    Args:
        name: such as cuda:4, which is cuda:5 for the second process; one without a number is the same for all.
        rank: of the process.
    """
    kind, colon, number = (name or "").partition(":")
    return f"{kind}:{int(number) + rank}" if colon and number.isdecimal() else name


def _backend() -> str:
    return torch.distributed.get_backend()


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM do nothing, and in processes that are started they never will."""
    is_main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _edit(config: Any, rank: int, number: int, link: Connection) -> None:
    """What each process but the first does, without a word: its share of each step."""
    first = multiprocessing.parent_process()
    assert first is not None
    threading.Thread(target=_end_with, args=(first,), daemon=True).start()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until this process ends
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, which a killed process leaves behind
    devices = Devices(rank, number, [link])
    try:
        compatibility.apply()
        torch.manual_seed(config.machine.seed)
        trainer = config.setup(local_rank=rank)
        trainer.devices = devices
        trainer.setup()
        trainer.follow()
    except BaseException as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc(file=sys.__stderr__)
        with suppress(OSError):
            link.send(_Failure.of(error))
        sys.exit(1)


def _end_with(first: BaseProcess) -> None:
    """End this process as soon as the first one has ended, whatever this one is at."""
    wait([first.sentinel])
    os._exit(1)
