package jobsql

import (
	"fmt"
	"strings"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
)

// columns are those of levada_job that make a [stream.Status], in the order of [Row.Dest].
const columns = `id, stream, target, query, dedupe_key, priority, not_before, on_bad, max_bad, state, epoch,
	owner_pod, owner_pod_uid, owner_container, owner_incarnation, lease_until, claimed_at, attempts, no_progress, stalled, denied, dependent,
	records, bytes, bad, size, probe, probe_until, hand, deaths, reason, last_error, created_at, started_at, updated_at, finished_at`

// Columns returns the columns of levada_job that a [Row] reads. table names the table in the statement; empty: there is only one.
func Columns(table string) string {
	if table == "" {
		return columns
	}
	names := strings.Split(columns, ",")
	for i, name := range names {
		names[i] = table + "." + strings.TrimSpace(name)
	}
	return strings.Join(names, ", ")
}

// Row is a row of levada_job that is being read. T is what the driver reads a time into that may be NULL.
type Row[T any] struct {
	status                                                              stream.Status // what needs no conversion
	dedupe                                                              *string       // NULL: the job has none
	notBefore, leaseUntil, claimed, created, started, updated, finished T
	epoch, records, bytes, bad, size, probeUntil, hand                  int64 // without sign, kept with one
	stalled, denied, dependent                                          int64 // microseconds
}

// Dest returns where the columns are scanned into.
func (r *Row[T]) Dest() []any {
	st := &r.status
	return []any{&st.ID, &st.Stream, &st.Target, &st.Query, &r.dedupe, &st.Priority, &r.notBefore, &st.OnBad, &st.MaxBad, &st.State, &r.epoch,
		&st.Owner.Pod, &st.Owner.PodUID, &st.Owner.Container, &st.Owner.Incarnation, &r.leaseUntil, &r.claimed, &st.Attempts, &st.RetryState.Failures, &r.stalled, &r.denied, &r.dependent,
		&r.records, &r.bytes, &r.bad, &r.size, &st.CrashState.BatchLimit, &r.probeUntil, &r.hand, &st.CrashState.Crashes,
		&st.Reason, &st.LastError, &r.created, &r.started, &r.updated, &r.finished}
}

// Status returns the job once the row is scanned. utc converts a time; NULL is the zero time.
func (r *Row[T]) Status(utc func(T) time.Time) stream.Status {
	st := r.status
	if r.dedupe != nil {
		st.DedupeKey = *r.dedupe
	}
	if len(st.Query) == 0 {
		st.Query = nil
	}
	st.Epoch = uint64(r.epoch)
	st.Progress = stream.Progress{Records: uint64(r.records), Bytes: uint64(r.bytes), Bad: uint64(r.bad), Size: uint64(r.size)}
	st.CrashState.SuspectUntil, st.CrashState.InFlightSeq = uint64(r.probeUntil), uint64(r.hand)
	st.RetryState.NoProgress, st.RetryState.Denied, st.RetryState.Dependent = duration(r.stalled), duration(r.denied), duration(r.dependent)
	st.NotBefore, st.CreatedAt, st.UpdatedAt = utc(r.notBefore), utc(r.created), utc(r.updated)
	st.LeaseUntil, st.ClaimedAt, st.StartedAt, st.FinishedAt = utc(r.leaseUntil), utc(r.claimed), utc(r.started), utc(r.finished)
	return st
}

func duration(micros int64) time.Duration { return time.Duration(micros) * time.Microsecond }

// DedupeKey is the column dedupe_key: NULL if the job has none, since the column is unique.
func DedupeKey(job stream.Job) *string {
	if job.DedupeKey == "" {
		return nil
	}
	return &job.DedupeKey
}

// Progress is the columns records, bytes, bad and size.
func Progress(p stream.Progress) []any {
	return []any{int64(p.Records), int64(p.Bytes), int64(p.Bad), int64(p.Size)}
}

// CrashState is the columns probe, probe_until, hand and deaths.
func CrashState(j stream.CrashState) []any {
	return []any{j.BatchLimit, int64(j.SuspectUntil), int64(j.InFlightSeq), j.Crashes}
}

// Stalled is the columns stalled, denied and dependent; no_progress has the failures.
func Stalled(s stream.RetryState) []any {
	return []any{s.NoProgress.Microseconds(), s.Denied.Microseconds(), s.Dependent.Microseconds()}
}

// Noted is what Store.SaveState writes: the columns of [CrashState], no_progress, those of [Stalled], and whether reason and last_error are cleared, which they
// are when a record was committed.
func Noted(j stream.CrashState, s stream.RetryState) []any {
	args := append(CrashState(j), s.Failures)
	return append(append(args, Stalled(s)...), s == (stream.RetryState{}))
}

// Given is what Store.Release writes besides state and times: no_progress, the columns of [Progress], reason, last_error, and the columns of [CrashState]
// and [Stalled].
func Given(r stream.Release) []any {
	args := append([]any{r.RetryState.Failures}, Progress(r.Progress)...)
	args = append(args, jobrule.Text(string(r.Reason)), jobrule.Text(r.LastError))
	return append(append(args, CrashState(r.CrashState)...), Stalled(r.RetryState)...)
}

// OffsetColumns are those of levada_offset, in the order of [Offset.Dest].
const OffsetColumns = `version, epoch, seq, token, digest, bytes, bad, done`

// Offset is a row of levada_offset: a sink's checkpoint, and the epoch for which the sink is fenced.
type Offset struct {
	stream.Checkpoint        // once Check was called
	Version           int    // of the checkpoint's format
	Epoch             uint64 // once Check was called
	epoch, seq        int64
	bytes, bad        int64
	digest            []byte
}

// Dest returns where the columns are scanned into.
func (o *Offset) Dest() []any {
	return []any{&o.Version, &o.epoch, &o.seq, &o.Token, &o.digest, &o.bytes, &o.bad, &o.Done}
}

// Check completes the row once it is scanned. Its error says that the row is not one that a sink has written.
func (o *Offset) Check() error {
	if len(o.digest) != len(o.Digest) {
		return fmt.Errorf("the stored digest has %d bytes, but must have %d: the row was changed by something else", len(o.digest), len(o.Digest))
	}
	copy(o.Digest[:], o.digest)
	o.Epoch, o.Seq, o.Bytes, o.Bad = uint64(o.epoch), uint64(o.seq), uint64(o.bytes), uint64(o.bad)
	if len(o.Token) == 0 {
		o.Token = nil
	}
	return nil
}

// NotNull keeps an empty value from becoming NULL.
func NotNull(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// QuarantineColumns are those of levada_quarantine, in the order of [QuarantineRow.Dest].
const QuarantineColumns = `job, seq, key, payload, error, class, attempts, history, state, first_seen`

// QuarantineRow is a row of levada_quarantine that is being read. T is what the driver reads a time into that may be NULL.
type QuarantineRow[T any] struct {
	row       stream.Quarantined // what needs no conversion
	seq       int64
	history   string
	firstSeen T
}

// Dest returns where the columns are scanned into.
func (r *QuarantineRow[T]) Dest() []any {
	q := &r.row
	return []any{&q.Job, &r.seq, &q.Key, &q.Payload, &q.Error, &q.Class, &q.Attempts, &r.history, &q.State, &r.firstSeen}
}

// Quarantined returns the record once the row is scanned. utc converts a time; NULL is the zero time.
func (r *QuarantineRow[T]) Quarantined(utc func(T) time.Time) stream.Quarantined {
	q := r.row
	q.Seq, q.History, q.FirstSeen = uint64(r.seq), jobrule.History(r.history), utc(r.firstSeen)
	return q
}
