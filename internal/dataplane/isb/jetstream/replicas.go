package jetstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/levada-io/levada/internal/dataplane/natslink"
)

const (
	watchHealthy   = 30 * time.Second // between two requests about a healthy stream
	watchUnsettled = 3 * time.Second  // and about any other
	watchAtOnce    = 8                // requests
	maxUnanswered  = 2                // requests in a row, before a stream counts as one without a leader: one may be lost with a connection
	maxReplicaIdle = 10 * time.Second // a replica that its leader has not heard from for longer counts as offline; leaders hear from theirs every second
)

// watch follows how a cluster keeps the streams that this process has open: whether each has a leader, and which replicas are offline or behind. It asks every 30 s, every
// 3 s about streams that are not healthy, and at once after a reconnect or an advisory about a leader.
type watch struct {
	log *slog.Logger
	// wake has an element when all streams are to be asked for now.
	wake chan struct{}

	mu sync.Mutex
	// streams is the last answer about each; those of a server that is in no cluster are removed. Guarded by mu.
	streams map[string]replication
	// why is the reason why new streams have one replica, if the broker gave one; nil before the first pipeline was opened. Guarded by mu.
	why func() error
	// balance spreads leaders; nil to leave them. It belongs to run.
	balance *balance
	// single are the streams with one replica in a cluster that were logged. Guarded by mu.
	single map[string]bool
}

// replication is how a stream is replicated. The zero value is that of a stream that was not asked for yet.
type replication struct {
	// unanswered counts the requests in a row that had no answer.
	unanswered int
	replicas   int
	leader     string
	// offline, lagging and behind are the names of the servers of such replicas, sorted. A replica that lags in one answer is ordinary under load; behind are those that
	// did so in two answers in a row, or that have just come back.
	offline, lagging, behind []string
}

// stopped reports whether nothing can be written or read.
func (r replication) stopped() bool {
	return r.unanswered >= maxUnanswered || len(r.offline) > (r.replicas-1)/2
}

// unsettled reports whether the stream is to be asked for again soon.
func (r replication) unsettled() bool {
	return r.replicas == 0 || r.unanswered > 0 || len(r.offline)+len(r.lagging) > 0
}

// problem is empty for a healthy stream.
func (r replication) problem() string {
	switch {
	case r.unanswered >= maxUnanswered:
		return "it has no leader: its server, or the majority of its replicas, is down. Messages wait until they are back"
	case r.stopped():
		return "the majority of its replicas is down: " + strings.Join(r.offline, ", ") + ". Messages wait until they are back"
	}
	var parts []string
	if len(r.offline) > 0 {
		parts = append(parts, "offline: "+strings.Join(r.offline, ", "))
	}
	if len(r.behind) > 0 {
		parts = append(parts, "behind its leader: "+strings.Join(r.behind, ", "))
	}
	if len(r.offline) > 0 && len(r.offline) == (r.replicas-1)/2 {
		parts = append(parts, "the loss of another server stops it")
	}
	return strings.Join(parts, "; ")
}

// advisories are about leaders of streams. A user may lack the permission to subscribe: then only the requests find what changed.
var advisories = []string{natslink.Advisories + "STREAM.QUORUM_LOST.>", natslink.Advisories + "STREAM.LEADER_ELECTED.>"}

func newWatch(log *slog.Logger) *watch {
	return &watch{log: log, wake: make(chan struct{}, 1), streams: map[string]replication{}, single: map[string]bool{}}
}

// openedTimeout bounds the questions about the streams of a pipeline that was just opened.
const openedTimeout = 3 * time.Second

// opened asks for all streams, and logs those that a cluster keeps once, from now on also those that are added later.
func (w *watch) opened(js jetstream.JetStream, why func() error) {
	w.mu.Lock()
	w.why = why
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), openedTimeout)
	defer cancel()
	w.askFor(ctx, js, false)
}

// fewest returns the streams with the fewest replicas, sorted, and how many these are.
func (w *watch) fewest() (streams []string, replicas int) {
	if w == nil {
		return nil, 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for stream, r := range w.streams {
		switch {
		case r.replicas == 0: // not known yet
		case replicas == 0 || r.replicas < replicas:
			streams, replicas = []string{stream}, r.replicas
		case r.replicas == replicas:
			streams = append(streams, stream)
		}
	}
	slices.Sort(streams)
	return streams, replicas
}

// logSingle logs the streams that have one replica in a cluster, and were not logged yet.
func (w *watch) logSingle() {
	streams, replicas := w.fewest()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why == nil || replicas != 1 {
		return
	}
	streams = slices.DeleteFunc(streams, func(s string) bool { return w.single[s] })
	if len(streams) == 0 {
		return
	}
	for _, s := range streams {
		w.single[s] = true
	}
	args := []any{"streams", strings.Join(streams, " "), "to change it", "give --replicas 3"}
	if err := w.why(); err != nil {
		args = []any{"streams", strings.Join(streams, " "), "reason", err, "to change it", "run three servers with JetStream in the cluster, and give --replicas 3"}
	}
	w.log.Warn("streams have one replica in a cluster: the loss of a server stops those on it, and the loss of its disk loses them", args...)
}

// add has a stream watched from now on.
func (w *watch) add(stream string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.streams[stream]; !ok {
		w.streams[stream] = replication{}
	}
}

// askNow has all streams asked for now.
func (w *watch) askNow() {
	if w == nil {
		return
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run watches until ctx ends.
func (w *watch) run(ctx context.Context, conn *nats.Conn, js jetstream.JetStream) {
	for _, subject := range advisories {
		sub, err := conn.Subscribe(subject, func(m *nats.Msg) {
			if w.has(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]) {
				w.askNow()
			}
		})
		if err != nil {
			w.log.Debug("no advisories of the broker", "subject", subject, "error", err)
			continue
		}
		defer func() { _ = sub.Unsubscribe() }() // of a connection that may be closed already
	}
	askedAll := time.Now()
	for {
		all := false
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
			all = true
		case <-time.After(watchUnsettled):
			all = time.Since(askedAll) >= watchHealthy
		}
		if !conn.IsConnected() { // then nothing answers, whatever the streams are like
			if w.balance != nil {
				w.balance.healthy = time.Time{}
			}
			continue
		}
		if all {
			askedAll = time.Now()
		}
		w.askFor(ctx, js, all)
		w.balanceLeaders(ctx, conn, js)
	}
}

func (w *watch) has(stream string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.streams[stream]
	return ok
}

// askFor asks for the streams that are unsettled, and for all if all.
func (w *watch) askFor(ctx context.Context, js jetstream.JetStream, all bool) {
	w.mu.Lock()
	before := maps.Clone(w.streams)
	w.mu.Unlock()
	var asking errgroup.Group
	asking.SetLimit(watchAtOnce)
	for stream, r := range before {
		if all || r.unsettled() {
			asking.Go(func() error {
				w.ask(ctx, js, stream, r)
				return nil
			})
		}
	}
	_ = asking.Wait() // no error is returned
	w.logSingle()
}

// ask finds out how a stream is replicated now, and logs what has changed since before.
func (w *watch) ask(ctx context.Context, js jetstream.JetStream, stream string, before replication) {
	timeout, cancel := context.WithTimeout(ctx, watchUnsettled)
	defer cancel()
	s, err := js.Stream(timeout, stream)
	var now replication
	switch {
	case err == nil && !inCluster(s.CachedInfo()), errors.Is(err, jetstream.ErrStreamNotFound): // a single server; or one that is lost, which its reader reports
		w.mu.Lock()
		delete(w.streams, stream)
		w.mu.Unlock()
		return
	case err == nil:
		now = replicationOf(s.CachedInfo(), before)
	case ctx.Err() != nil:
		return
	default:
		w.log.Debug("stream does not answer", "stream", stream, "error", err)
		now = before
		now.unanswered++
	}
	w.mu.Lock()
	w.streams[stream] = now
	w.mu.Unlock()
	switch was, is := before.problem(), now.problem(); {
	case was == is:
	case is == "":
		w.log.Info("stream has all its replicas again", "stream", stream)
	case now.stopped():
		w.log.Error("stream is stopped", "stream", stream, "problem", is)
	default:
		w.log.Warn("stream lacks replicas", "stream", stream, "problem", is)
	}
}

// inCluster reports whether the server of a stream is in a cluster. A single one says that it is the leader in a cluster without a name.
func inCluster(info *jetstream.StreamInfo) bool {
	return info.Cluster != nil && info.Cluster.Name != ""
}

// replicationOf reads what the leader of a stream says of its replicas.
func replicationOf(info *jetstream.StreamInfo, before replication) replication {
	if info.Cluster.Leader == "" { // another server answers then, which calls all of them offline
		before.unanswered++
		return before
	}
	r := replication{replicas: 1 + len(info.Cluster.Replicas), leader: info.Cluster.Leader}
	for _, peer := range info.Cluster.Replicas {
		lags := !peer.Current && peer.Lag > 0
		known := before.stopped() || slices.Contains(before.offline, peer.Name) || slices.Contains(before.lagging, peer.Name)
		// A leader that was elected after a replica had gone has never heard from it, and says 0.
		silent := peer.Active > maxReplicaIdle || lags && known && peer.Active == 0
		switch {
		case peer.Offline || silent:
			r.offline = append(r.offline, peer.Name)
		case lags:
			r.lagging = append(r.lagging, peer.Name)
			if known {
				r.behind = append(r.behind, peer.Name)
			}
		}
	}
	slices.Sort(r.offline)
	slices.Sort(r.lagging)
	slices.Sort(r.behind)
	return r
}

// problems returns what is wrong with streams, in the order of their names: those that are stopped, and those that go on with fewer replicas.
func (w *watch) problems() (stopped, degraded []error) {
	if w == nil {
		return nil, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, stream := range slices.SortedFunc(maps.Keys(w.streams), cmp.Compare) {
		r := w.streams[stream]
		if r.problem() == "" {
			continue
		}
		err := fmt.Errorf("stream %s: %s", stream, r.problem())
		if r.stopped() {
			stopped = append(stopped, err)
		} else {
			degraded = append(degraded, err)
		}
	}
	return stopped, degraded
}
