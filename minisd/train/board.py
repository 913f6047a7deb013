"""The rows of metrics.jsonl as TensorBoard shows them, where a recipe asks for it."""

import time
from collections.abc import Mapping
from pathlib import Path

from minisd.errors import USAGE, MinisdError

FOLDER = "board"


class Board:
    """Writes event files into a run's folder; the first row of a session takes the place of any from there on, so that
    a run that was killed and resumed shows each step once."""

    def __init__(self, run: Path):
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as fault:
            raise MinisdError("TensorBoard is not installed", "train.tensorboard", str(fault),
                              "pip install minisd[track], or leave the option out", USAGE) from fault
        self.event, self.session, self.summary, self.new = Event, SessionLog, Summary, EventFileWriter
        self.folder = run / FOLDER
        self.file: EventFileWriter | None = None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step, each as a curve of its own."""
        now = time.time()
        if self.file is None:
            self.file = self.new(str(self.folder))
            begun = self.session(status=self.session.START)
            self.file.add_event(self.event(wall_time=now, step=step, session_log=begun))
        shown = [self.summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.file.add_event(self.event(wall_time=now, step=step, summary=self.summary(value=shown)))
        self.file.flush()
