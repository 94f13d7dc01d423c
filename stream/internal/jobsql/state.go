package jobsql

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
)

// Transition takes a job from one of some states to another, at a person's wish.
type Transition struct {
	What string // names it in errors
	From string // the states it may be taken from, as SQL lists them
	Set  string // what changes; besides, the lease ends and updated_at moves
}

// Transitions are all that there are. Those that end a run, or begin another one, raise the epoch: whatever the job's former owner still does is refused
// by the fence. Resume need not, since Pause has.
type Transitions struct{ Cancel, Pause, Resume, Retry Transition }

// Dialect is in what the transitions differ between databases.
type Dialect struct {
	Now      string // an expression for the time
	Due      string // an expression for a time at which a job is due at once, for claims that begin from now on
	Greatest string // the function that returns the greater of two values
}

// TransitionsIn returns the transitions as the database writes them.
func TransitionsIn(d Dialect) Transitions {
	ready := `state = 'ready', not_before = ` + d.Greatest + `(not_before, ` + d.Due + `)`
	return Transitions{
		Cancel: Transition{"cancel", `'ready', 'running', 'paused'`, `state = 'cancelled', epoch = epoch + 1, finished_at = ` + d.Now},
		Pause:  Transition{"pause", `'ready', 'running'`, `state = 'paused', epoch = epoch + 1`},
		Resume: Transition{"resume", `'paused'`, ready},
		Retry: Transition{"retry", `'completed', 'failed', 'cancelled'`, ready + `, epoch = epoch + 1, finished_at = null,
			no_progress = 0, stalled = 0, denied = 0, dependent = 0, probe = 0, probe_until = 0, hand = 0, deaths = 0, reason = '', last_error = ''`},
	}
}

// WrongState is the error of a transition from a state that it may not begin in.
func WrongState(st stream.Status) error {
	return fmt.Errorf("job %s is %s: %w", st.ID, st.State, stream.ErrState)
}

// Found is the result of a look for one job: err is what the database said, noRow what it says when there is none.
func Found(id string, st stream.Status, err, noRow error) (stream.Status, error) {
	if errors.Is(err, noRow) {
		err = stream.ErrNotFound
	}
	if err != nil {
		return stream.Status{}, fmt.Errorf("job %q: %w", id, err)
	}
	return st, nil
}

// Fenced says why the lease is not the job's current one. st and err are the result of a look for the job.
func Fenced(l stream.Lease, st stream.Status, err error) error {
	if errors.Is(err, stream.ErrNotFound) {
		return jobrule.Fenced(l, "there is no such job")
	}
	if err != nil {
		return err
	}
	return jobrule.Fenced(l, "the job is %s in epoch %d, its last owner is %v", st.State, st.Epoch, st.Owner)
}

// Released reports whether a release that the fence has refused with err was done by a call before, whose answer was lost. get looks for the job.
func Released(l stream.Lease, r stream.Release, err error, get func() (stream.Status, error)) bool {
	if !errors.Is(err, stream.ErrFenced) || !r.State.Final() {
		return false
	}
	st, err := get()
	return err == nil && st.Epoch == l.Epoch && st.State == r.State
}

// Same reports whether a stored checkpoint is the one that a commit builds on.
func Same(a, b stream.Checkpoint) bool {
	return a.Seq == b.Seq && bytes.Equal(a.Token, b.Token) && a.Digest == b.Digest && a.Bytes == b.Bytes && a.Bad == b.Bad && a.Done == b.Done
}

// Refuses reports whether the error says that the lease or the checkpoint is not the right one.
func Refuses(err error) bool {
	return errors.Is(err, stream.ErrFenced) || errors.Is(err, stream.ErrConflict)
}

// Unmarked is the error of a replay of a record that is not marked for it.
func Unmarked(l stream.Lease, seq uint64) error {
	return fmt.Errorf("job %s: record %d is not marked for replay: %w", l.Job, seq, stream.ErrConflict)
}

// MayCommit checks a lease against what the sink has stored. ok is false if that is nothing.
func MayCommit(l stream.Lease, stored Offset, ok bool) error {
	switch {
	case !ok:
		return jobrule.Fenced(l, "the epoch was never fenced")
	case stored.Epoch != l.Epoch:
		return jobrule.Fenced(l, "the sink is fenced for epoch %d", stored.Epoch)
	}
	return nil
}

const (
	// OwnersQuery lists the owners of running jobs.
	OwnersQuery = `select distinct owner_pod, owner_pod_uid, owner_container, owner_incarnation from levada_job where state = 'running'`
	// OrphansQuery counts the jobs that no claim would ever find, although they are neither final nor paused.
	OrphansQuery = `select count(*) from levada_job where case state when 'ready' then not_before is null when 'running' then lease_until is null
		else state not in ('paused', 'completed', 'failed', 'cancelled') end`
)
