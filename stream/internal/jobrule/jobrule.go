// Package jobrule says what stores and sinks accept, so that all of them refuse the same things in the same words.
package jobrule

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/levada-io/levada/stream"
)

// maxName is how long names may be, in bytes: they are keys of indexes, and notifications carry a stream's and a job's.
const maxName = 1024

// Job returns the job as it is to be stored: with an ID, and a policy.
func Job(j stream.Job) (stream.Job, error) {
	if j.Stream == "" {
		return j, fmt.Errorf("job %q: Stream is empty, but must be the name of the stream at its producer", j.ID)
	}
	if j.ID == "" {
		j.ID = stream.NewID()
	}
	if err := name("ID", j.ID); err != nil {
		return j, err
	}
	if err := name("Stream", j.Stream); err != nil {
		return j, fmt.Errorf("job %s: %w", j.ID, err)
	}
	if err := text("DedupeKey", j.DedupeKey); err != nil {
		return j, fmt.Errorf("job %s: %w", j.ID, err)
	}
	if err := text("Target", j.Target); err != nil {
		return j, fmt.Errorf("job %s: %w", j.ID, err)
	}
	switch j.OnBad {
	case "":
		j.OnBad = stream.Quarantine
	case stream.Quarantine, stream.HaltJob:
	default:
		return j, fmt.Errorf("job %s: OnBad is %q, but must be %q or %q", j.ID, j.OnBad, stream.Quarantine, stream.HaltJob)
	}
	if j.MaxBad < 0 && j.MaxBad != stream.None {
		return j, fmt.Errorf("job %s: MaxBad is %d, but must not be negative; stream.None (%d) allows none, 0 is the worker's default", j.ID, j.MaxBad, stream.None)
	}
	return j, nil
}

// Same returns an error that wraps [stream.ErrExists] unless the job that was found by the ID or the DedupeKey of another that is submitted moves the
// same records. How it moves them, and when, may differ: that of the first stays.
func Same(asked, found stream.Job) error {
	var differs []string
	differ := func(field, want, is string) {
		if want != is {
			differs = append(differs, fmt.Sprintf("%s %.200q (asked for: %.200q)", field, is, want))
		}
	}
	differ("Stream", asked.Stream, found.Stream)
	differ("Target", asked.Target, found.Target)
	differ("Query", string(asked.Query), string(found.Query))
	what := fmt.Sprintf("the job of stream %q with DedupeKey %q, %s,", found.Stream, found.DedupeKey, found.ID)
	do := "give a job for other records another DedupeKey"
	if asked.ID == found.ID {
		differ("DedupeKey", asked.DedupeKey, found.DedupeKey)
		what, do = fmt.Sprintf("the job with ID %s", found.ID), "give this one another ID, or leave it empty"
	}
	if len(differs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s has %s: %s", stream.ErrExists, what, strings.Join(differs, ", "), do)
}

// name checks what stands in notifications, separated by spaces.
func name(field, s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return fmt.Errorf("%s is %q, but must hold neither white space nor control characters", field, s)
	}
	return text(field, s)
}

func text(field, s string) error {
	if len(s) > maxName {
		return fmt.Errorf("%s has %d bytes, but may have %d at most", field, len(s), maxName)
	}
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return fmt.Errorf("%s is %q, but must be valid UTF-8 without a zero byte", field, s)
	}
	return nil
}

// Text makes any text one that every database takes: errors may quote any bytes.
func Text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
}

// Owner returns the owner with names that every database takes.
func Owner(o stream.Owner) stream.Owner {
	return stream.Owner{Pod: Text(o.Pod), PodUID: Text(o.PodUID), Container: Text(o.Container), Incarnation: Text(o.Incarnation)}
}

// Claim checks a claim.
func Claim(c stream.Claim) error {
	if c.Max <= 0 {
		return fmt.Errorf("claim: Max is %d, but must be at least 1", c.Max)
	}
	return TTL("claim", c.TTL)
}

// TTL checks how long a lease is to last.
func TTL(what string, ttl time.Duration) error {
	if ttl < time.Millisecond {
		return fmt.Errorf("%s: the lease would last %v, but must last at least 1ms", what, ttl)
	}
	return nil
}

// Release checks a release.
func Release(l stream.Lease, r stream.Release) error {
	switch r.State {
	case stream.Ready, stream.Completed, stream.Failed:
	default:
		return fmt.Errorf("release of job %s: State is %q, but must be %q, %q or %q", l.Job, r.State, stream.Ready, stream.Completed, stream.Failed)
	}
	if r.After < 0 {
		return fmt.Errorf("release of job %s: After is %v, but must not be negative", l.Job, r.After)
	}
	return nil
}

// CheckExpire checks that a mistake does not end every lease there is.
func CheckExpire(d stream.ExpireFilter) error {
	if d.PodUID == "" && d.Incarnation == "" && !d.All {
		return fmt.Errorf("expire: one of PodUID, Incarnation and All must be set")
	}
	return nil
}

// QuarantineMark checks what quarantined records are to be marked with.
func QuarantineMark(to stream.QuarantineState) error {
	if to != stream.Waiting && to != stream.Replay && to != stream.Dropped {
		return fmt.Errorf("quarantined records cannot be marked %q, only %q, %q or %q", to, stream.Waiting, stream.Replay, stream.Dropped)
	}
	return nil
}

// Commit checks a step of a job, once its next checkpoint is known.
func Commit(l stream.Lease, prev, next stream.Checkpoint) error {
	if next.Seq < prev.Seq {
		return fmt.Errorf("job %s: a commit cannot go back from record %d to record %d", l.Job, prev.Seq, next.Seq)
	}
	return nil
}

// Replay returns the one record of a batch that is to be handed over again.
func Replay(l stream.Lease, b *stream.Batch) (stream.Record, error) {
	if len(b.Records) != 1 {
		return stream.Record{}, fmt.Errorf("job %s: a replay has %d records, but must have 1", l.Job, len(b.Records))
	}
	return b.Records[0], nil
}

// Fenced, Conflict and Newer are the errors of sinks.
func Fenced(l stream.Lease, why string, args ...any) error {
	return fmt.Errorf("job %s, epoch %d: %s: %w", l.Job, l.Epoch, fmt.Sprintf(why, args...), stream.ErrFenced)
}

func Conflict(l stream.Lease, prev, stored uint64) error {
	return fmt.Errorf("job %s, epoch %d: the commit goes on from record %d, but the checkpoint stored is of record %d (or another of the same number): %w",
		l.Job, l.Epoch, prev, stored, stream.ErrConflict)
}

func Newer(job string, stored int) error {
	return fmt.Errorf("job %s: its checkpoint has version %d, and this program knows versions up to %d: update it: %w",
		job, stored, stream.CheckpointVersion, stream.ErrNewer)
}

// NewerSchema is the error for tables that a newer program has changed.
func NewerSchema(what string, stored, known int64) error {
	return fmt.Errorf("the tables of %s have version %d, and this program knows versions up to %d: update it: %w", what, stored, known, stream.ErrNewer)
}

// OlderSchema is the error for tables that are missing, or older than the program needs, when it must not change them.
func OlderSchema(what string, stored, known int64) error {
	found := fmt.Sprintf("have version %d", stored)
	if stored == 0 {
		found = "are missing"
	}
	return fmt.Errorf("the tables of %s %s, and this program needs version %d: create or update them with Migrate of the store's package: %w",
		what, found, known, stream.ErrOlder)
}

// History returns the attempts at a quarantined record as stores keep them. A row that holds something else has no history.
func History(text string) (all []stream.Attempt) {
	if text == "" || json.Unmarshal([]byte(text), &all) != nil {
		return nil
	}
	return all
}

// HistoryText is what History reads.
func HistoryText(all []stream.Attempt) string {
	if len(all) == 0 {
		return ""
	}
	for i := range all {
		all[i].Error, all[i].Stack = Text(all[i].Error), Text(all[i].Stack)
	}
	text, _ := json.Marshal(all) // strings and times cannot fail
	return Text(string(text))
}

// KeyTaken is the error of a retry of a cancelled job whose DedupeKey another job has by now.
func KeyTaken(id string) error {
	return fmt.Errorf("job %s was cancelled, and another job has its DedupeKey by now: %w", id, stream.ErrState)
}

// Retention checks what is to be deleted, and returns it with its defaults.
func Retention(r stream.Retention) (stream.Retention, error) {
	if r.OlderThan < time.Minute {
		return r, fmt.Errorf("purge: OlderThan is %v, but must be at least a minute", r.OlderThan)
	}
	if r.Max < 0 {
		return r, fmt.Errorf("purge: Max is %d, but must not be negative", r.Max)
	}
	if r.States == nil {
		r.States = []stream.State{stream.Completed, stream.Cancelled}
	}
	for _, s := range r.States {
		if !s.Final() {
			return r, fmt.Errorf("purge: a job that is %q has not ended; expected some of %q, %q and %q", s, stream.Completed, stream.Failed, stream.Cancelled)
		}
	}
	if r.Max == 0 {
		r.Max = 10000
	}
	return r, nil
}
