# SPDX-License-Identifier: Apache-2.0
"""Which event a record belongs to, and when it happened."""

from __future__ import annotations

import numpy as np

from perfguest.errors import FormatError
from perfguest.formats import perf_attr
from perfguest.formats.perf_attr import Event
from perfguest.formats.perf_records import I32, I64, U64, Records


class EventFinder:
    """Knows the events of one recording.

    Samples of events with different fields can be told apart only by IDENTIFIER, whose place is fixed; otherwise all events have their ID at the same place.
    Raises :class:`FormatError` where neither holds.
    """

    def __init__(self, path: str, events: tuple[Event, ...]) -> None:
        if not events:
            raise FormatError(f"{path} describes no events", "perf died before it wrote anything; record again.")
        self._events = events
        ids = [(identifier, index) for index, event in enumerate(events) for identifier in event.ids]
        ids.sort()
        self._ids: U64 = np.array([identifier for identifier, _ in ids], np.uint64)
        self._owners: I32 = np.array([index for _, index in ids], np.int32)
        self._id_at = self._shared_id_offset(path)
        trailers = [event.trailer_words() for event in events]
        self._trailers = trailers
        self._trailers_differ = any(trailer != trailers[0] for trailer in trailers)
        self._times_from_end: I64 = np.array([trailer.get(perf_attr.TIME, 0) for trailer in trailers], np.int64)

    def _shared_id_offset(self, path: str) -> int | None:
        if len(self._events) == 1:
            return None
        words = [event.sample_words() for event in self._events]
        for bit in (perf_attr.IDENTIFIER, perf_attr.ID):
            offsets = {word.get(bit) for word in words}
            if len(offsets) == 1 and None not in offsets:
                return offsets.pop()
        if len({event.layout for event in self._events}) == 1:
            return None
        raise FormatError(f"{path}: its events cannot be told apart: they differ in fields and carry no identifier", "Record one event at a time.")

    def of_samples(self, samples: Records) -> I32:
        """Index of the event of each sample record; -1 where it carries an id that no event has. Records too short for an id count as the first event's."""
        found = np.zeros(len(samples), np.int32)
        if self._id_at is not None:
            fits = samples.size >= self._id_at + 8
            found[fits] = self._owner_of(samples.buffer.u64(samples.offset[fits] + self._id_at))
        return found

    def times(self, records: Records) -> I64:
        """Nanoseconds of each record that is no sample; 0 where it does not say, as for what perf made up before recording began."""
        if self._trailers_differ:
            # Then an id at the very end tells whose form the trailer has.
            fits = records.size >= 16
            owner = np.zeros(len(records), np.int32)
            owner[fits] = np.maximum(self._owner_of(records.buffer.u64((records.offset + records.size - 8)[fits])), 0)
            distance = self._times_from_end[owner]
        else:
            distance = np.full(len(records), self._times_from_end[0])
        known = (distance > 0) & (records.size >= distance + 8)
        times = np.zeros(len(records), np.int64)
        times[known] = records.buffer.u64((records.offset + records.size - distance)[known]).view(np.int64)
        return times

    def _owner_of(self, ids: U64) -> I32:
        if not len(self._ids):
            return np.zeros(len(ids), np.int32)
        at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        owners = np.where(self._ids[at] == ids, self._owners[at], -1).astype(np.int32)
        # perf gives what it makes up itself the id 0.
        owners[ids == 0] = 0
        return owners
