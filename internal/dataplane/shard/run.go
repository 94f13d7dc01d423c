package shard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/drain"
)

// Ownership is one start of a shard.
type Ownership struct {
	Shard string
	// Epoch and Incarnation identify the start. They belong into everything that must be fenced; see OpenState.
	Epoch       uint64
	Incarnation string
}

// Reader reads a shard. When ctx.Intake ends, with the reason as its cause, it finishes what is in flight, saves, and returns nil. When ctx.Work ends, it gives up and returns: within Timing.Abandon
// nothing of it may run any more. It returns an error that is ErrFenced when a save was refused. Any other return before Intake ends stops Run.
type Reader func(ctx drain.Context, o Ownership) error

// Config says who takes part in what. Store, Group, Name, Incarnation, Shards and Read are required.
type Config struct {
	Store Store
	// Group is the prefix of the keys of all who share the shards, such as "shards.VERTEX".
	Group string
	// Name is the member's: unique in the group at a time, and the same when the process is restarted. A pod's name.
	Name string
	// Incarnation is unique for each start of the process.
	Incarnation string
	// Shards are the same for all members.
	Shards []string
	Timing Timing
	Read   Reader
	Logger *slog.Logger
}

// Run takes part until ctx.Intake ends and everything was released, or until ctx.Work ends. Before it is called, the process must be ready to read any shard: from
// then on it gets its share. It returns ErrSuperseded if another process takes the name, and the error of a reader that failed. Once it returns, no reader runs.
func Run(ctx drain.Context, cfg Config) error {
	r, err := newRunner(cfg)
	if err != nil {
		return err
	}
	defer r.all.Wait()
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx.Work))
	defer cancel()
	r.requests, r.work = requests, ctx.Work
	r.rewatch()
	return r.loop(ctx)
}

// leaveTime is how long Run tries to release what it has after Work has ended.
const leaveTime = time.Second

type runner struct {
	cfg      Config
	log      *slog.Logger
	began    time.Time
	member   *Member
	events   chan func() Event // a func may return nil: nothing for the member
	requests context.Context
	work     context.Context // ends what readers do
	all      sync.WaitGroup

	// watch is stopped by endWatch; events of earlier ones are dropped.
	watch    int
	endWatch context.CancelFunc

	// failing is since when no request was answered, zero if the last one was; reported says that this was logged.
	failing  time.Time
	reported bool

	readers map[string]*started
	left    bool
	err     error
}

// started is a reader that runs.
type started struct {
	finish, abandon context.CancelCauseFunc
	asked           bool
}

func newRunner(cfg Config) (*runner, error) {
	if cfg.Store == nil || cfg.Read == nil || cfg.Group == "" || cfg.Name == "" || cfg.Incarnation == "" || len(cfg.Shards) == 0 {
		return nil, fmt.Errorf("shards of %q: Store, Read, Group, Name, Incarnation and Shards are required", cfg.Group)
	}
	r := &runner{cfg: cfg, log: cfg.Logger, began: time.Now(), events: make(chan func() Event), readers: map[string]*started{}, endWatch: func() {}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.member = NewMember(cfg.Name, cfg.Incarnation, cfg.Shards, cfg.Timing, 0)
	return r, nil
}

func (r *runner) clock() time.Duration { return time.Since(r.began) }

func (r *runner) loop(ctx drain.Context) error {
	intake, work := ctx.Intake.Done(), ctx.Work.Done()
	var giveUp <-chan time.Time
	r.step(Tick{})
	for !r.left {
		timer := time.NewTimer(min(r.member.Next()-r.clock(), time.Minute))
		select {
		case event := <-r.events:
			if e := event(); e != nil {
				r.step(e)
			}
		case <-timer.C:
			r.step(Tick{})
		case <-intake:
			intake = nil
			r.step(Drain{})
		case <-work:
			work = nil
			giveUp = time.After(leaveTime)
			r.step(Drain{})
		case <-giveUp:
			if len(r.readers) == 0 {
				return errors.Join(r.err, fmt.Errorf("leases of %s were not released in %v; they expire after their TTL", r.cfg.Group, leaveTime))
			}
			giveUp = time.After(leaveTime)
		}
		timer.Stop()
	}
	return r.err
}

// send hands an event to the loop, unless Run ends.
func (r *runner) send(event func() Event) {
	select {
	case r.events <- event:
	case <-r.requests.Done():
	}
}

func (r *runner) step(e Event) {
	for _, a := range r.member.Step(r.clock(), e) {
		r.act(a)
	}
}

func (r *runner) act(a Action) {
	switch a := a.(type) {
	case Write:
		r.request(a.ID, func(ctx context.Context) (Event, error) {
			revision, err := r.cfg.Store.Write(ctx, r.key(a.Key), encode(a.Record), a.Expect, a.TTL)
			return Written{a.ID, revision}, err
		})
	case Remove:
		r.request(a.ID, func(ctx context.Context) (Event, error) {
			revision, err := r.cfg.Store.Remove(ctx, r.key(a.Key), a.Expect)
			return Written{a.ID, revision}, err
		})
	case Read:
		r.request(a.ID, func(ctx context.Context) (Event, error) {
			e, err := r.cfg.Store.Read(ctx, r.key(a.Key))
			if err != nil || !e.Present {
				return Got{ID: a.ID, Revision: e.Revision}, err
			}
			record, err := decode(e.Key, e.Value)
			return Got{a.ID, record, true, e.Revision}, err
		})
	case Rewatch:
		r.rewatch()
	case Start:
		r.start(a)
	case Stop:
		r.stop(a)
	case Leave:
		r.left = true
		r.err = errors.Join(r.err, a.Err)
	}
}

func (r *runner) key(k Key) string { return r.cfg.Group + "." + k.String() }

func (r *runner) request(id uint64, do func(context.Context) (Event, error)) {
	r.all.Go(func() {
		ctx, cancel := context.WithTimeout(r.requests, r.member.timing.TTL/5)
		defer cancel()
		e, err := do(ctx)
		switch {
		case errors.Is(err, ErrConflict):
			e = Refused{id}
		case err != nil:
			e = Unknown{id}
		}
		r.send(func() Event {
			r.note(err)
			return e
		})
	})
}

// quiet is how long requests may fail before a line is logged: a broker that elects a leader is nothing to report.
const quiet = 3 * time.Second

// note logs once that the store does not answer, and once that it does again. Only the loop calls it.
func (r *runner) note(err error) {
	failed := err != nil && !errors.Is(err, ErrConflict)
	switch {
	case !failed && r.reported:
		r.log.Info("lease store answers again", "group", r.cfg.Group, "after", time.Since(r.failing).Round(time.Millisecond))
		fallthrough
	case !failed:
		r.failing, r.reported = time.Time{}, false
	case r.failing.IsZero():
		r.failing = time.Now()
	case !r.reported && time.Since(r.failing) > quiet:
		r.reported = true
		r.log.Warn("lease store does not answer, retrying; shards stop before their leases can expire", "group", r.cfg.Group, "error", err)
	}
}

// rewatch replaces the watch.
func (r *runner) rewatch() {
	r.endWatch()
	r.watch++
	watch := r.watch
	ctx, cancel := context.WithCancel(r.requests)
	r.endWatch = cancel
	send := func(e Event) {
		r.send(func() Event {
			if r.watch != watch {
				return nil
			}
			return e
		})
	}
	r.all.Go(func() {
		for ctx.Err() == nil {
			err := r.cfg.Store.Watch(ctx, r.cfg.Group+".", func(e Entry) {
				if o, ok := r.observed(e); ok && ctx.Err() == nil {
					send(o)
				}
			}, func() { send(Synced{}) })
			if ctx.Err() == nil {
				r.log.Debug("watch of shards interrupted, watching again", "group", r.cfg.Group, "error", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(r.member.timing.Retry):
			}
		}
	})
}

// observed is the event for an entry; false for keys that are not of the protocol.
func (r *runner) observed(e Entry) (Observed, bool) {
	key, ok := parseKey(strings.TrimPrefix(e.Key, r.cfg.Group+"."))
	if !ok || !e.Present {
		return Observed{Key: key, Revision: e.Revision}, ok
	}
	record, err := decode(e.Key, e.Value)
	if err != nil {
		r.log.Error("shard record unreadable, ignoring it", "group", r.cfg.Group, "error", err)
		return Observed{}, false
	}
	return Observed{key, record, true, e.Revision}, true
}

func (r *runner) start(a Start) {
	work, abandon := context.WithCancelCause(r.work)
	intake, finish := context.WithCancelCause(work)
	reader := &started{finish: finish, abandon: abandon}
	r.readers[a.Shard] = reader
	o := Ownership{a.Shard, a.Epoch, r.member.session.incarnation}
	r.log.Debug("shard started", "group", r.cfg.Group, "shard", a.Shard, "epoch", a.Epoch)
	r.all.Go(func() {
		err := r.cfg.Read(drain.Context{Work: work, Intake: intake}, o)
		ended := intake.Err() != nil
		abandon(nil)
		r.send(func() Event { return r.readerEnded(a, err, ended) })
	})
}

// readerEnded takes the return of a reader. Only the loop calls it.
func (r *runner) readerEnded(a Start, err error, asked bool) Event {
	delete(r.readers, a.Shard)
	var fenced *FencedError
	switch {
	case errors.As(err, &fenced):
		r.log.Warn("shard fenced, stopped", "group", r.cfg.Group, "shard", a.Shard, "epoch", a.Epoch, "seen", fenced.Seen)
		r.step(Fenced{a.Shard, a.Epoch, fenced.Seen})
	case asked:
		r.log.Debug("shard stopped", "group", r.cfg.Group, "shard", a.Shard, "epoch", a.Epoch)
	default:
		if err == nil {
			err = errors.New("it returned before it was asked to stop")
		}
		r.err = errors.Join(r.err, fmt.Errorf("reader of shard %s: %w", a.Shard, err))
		r.step(Drain{})
	}
	return Stopped(a)
}

func (r *runner) stop(a Stop) {
	reader := r.readers[a.Shard]
	if reader == nil {
		return // it has just returned; its event is on the way
	}
	if !reader.asked {
		r.log.Debug("shard stopping", "group", r.cfg.Group, "shard", a.Shard, "epoch", a.Epoch, "reason", string(a.Reason), "finish", a.Finish)
	}
	reader.asked = true
	reader.finish(errors.New(string(a.Reason)))
	if !a.Finish {
		reader.abandon(errors.New(string(a.Reason)))
	}
}
