package jetstream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/naming"
)

const (
	// balanceAfter is how long all streams must have been healthy before a leader is moved: the servers of a rolling restart come back within less.
	balanceAfter = time.Minute
	// balanceEvery is the least time between two moves of a process. As much again is added at random, so that processes do not move at the same time.
	balanceEvery = 10 * time.Second
	// leastServers is how many servers a cluster has at least in which a stream has a follower to hand over to, and stays healthy without one.
	leastServers = 3
)

// balance moves leaders of streams from the server that leads most to the one that leads fewest. After a rolling restart the server that was restarted first leads nearly
// all, and does the work of all.
//
// Only streams that this process has open are moved, one at a time, and only while all streams of Levada in the account have all their replicas and these are current. The
// counts are those of all of them, so that processes that see different streams agree.
type balance struct {
	after, every time.Duration
	// moved is called after each move.
	moved func()

	// healthy is since when no stream had a problem; zero while one has.
	healthy time.Time
	// next is when a leader may be moved again.
	next time.Time
	// fruitless are the leaders of the streams of this process when there was nothing to move.
	fruitless map[string]string
}

// led is a stream with a leader, and what is known of its replicas.
type led struct {
	stream, leader string
	// followers can become the leader: they have all that it has.
	followers []string
	healthy   bool
}

func ledOf(info *jetstream.StreamInfo) (led, bool) {
	if info.Cluster == nil || len(info.Cluster.Replicas) < 2 {
		return led{}, false
	}
	l := led{stream: info.Config.Name, leader: info.Cluster.Leader, healthy: info.Cluster.Leader != ""}
	for _, peer := range info.Cluster.Replicas {
		switch {
		case peer.Offline || peer.Active > maxReplicaIdle:
			l.healthy = false
		case peer.Current || peer.Lag == 0: // one that lags would lose the election, and the stream would have no leader for seconds
			l.followers = append(l.followers, peer.Name)
		}
	}
	return l, true
}

// move is the change of a leader.
type move struct{ stream, from, to string }

// chooseMove returns the move that makes the servers more even, of a stream that is one of ours. It returns false if there is none, or one of all streams is not healthy.
func chooseMove(all []led, ours func(stream string) bool) (best move, counts map[string]int, ok bool) {
	counts = map[string]int{}
	for _, l := range all {
		if !l.healthy {
			return move{}, nil, false
		}
		counts[l.leader]++
		for _, f := range l.followers {
			counts[f] += 0
		}
	}
	gain := 1 // the servers must differ by more
	for _, l := range slices.SortedFunc(slices.Values(all), func(a, b led) int { return cmp.Compare(a.stream, b.stream) }) {
		if !ours(l.stream) {
			continue
		}
		for _, f := range l.followers {
			if d := counts[l.leader] - counts[f]; d > gain {
				best, gain, ok = move{l.stream, l.leader, f}, d, true
			}
		}
	}
	return best, counts, ok
}

// uneven reports whether the leaders of some streams could be spread more evenly over the servers.
func uneven(leaders map[string]string) bool {
	counts := map[string]int{}
	for _, leader := range leaders {
		counts[leader]++
	}
	fewest, most := 0, 0
	for _, n := range counts {
		most = max(most, n)
	}
	if len(counts) >= leastServers {
		fewest = slices.Min(slices.Collect(maps.Values(counts)))
	}
	return most-fewest > 1
}

// balanceLeaders moves a leader if that is due, safe and of use. It is called after streams were asked for.
func (w *watch) balanceLeaders(ctx context.Context, conn *nats.Conn, js jetstream.JetStream) {
	b := w.balance
	if b == nil {
		return
	}
	leaders, healthy := w.leaders()
	now := time.Now()
	switch {
	case !healthy:
		b.healthy = time.Time{}
		return
	case b.healthy.IsZero():
		b.healthy = now
		// Processes see the end of an outage at the same time.
		b.next = now.Add(b.after + rand.N(b.every))
	}
	if now.Before(b.next) || !uneven(leaders) || maps.Equal(leaders, b.fruitless) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, requestsTimeout)
	defer cancel()
	var all []led
	streams := js.ListStreams(ctx)
	for info := range streams.Info() {
		if _, ours := naming.TagOf(info.Config.Metadata); ours {
			if l, ok := ledOf(info); ok {
				all = append(all, l)
			}
		}
	}
	if err := streams.Err(); err != nil {
		w.log.Debug("streams are not known, leaders stay where they are", "error", err)
		return
	}
	b.next = now.Add(b.every + rand.N(b.every))
	m, counts, ok := chooseMove(all, func(stream string) bool { return leaders[stream] != "" })
	if !ok {
		b.fruitless = leaders
		return
	}
	b.fruitless = nil
	if err := stepDown(ctx, conn, m); err != nil {
		w.log.Warn("leader of a stream could not be moved, retrying", "stream", m.stream, "from", m.from, "to", m.to, "error", err)
		return
	}
	w.log.Info("leader of a stream moved", "stream", m.stream, "from", m.from, "to", m.to, "leaders before", perServer(counts))
	if b.moved != nil {
		b.moved()
	}
	w.askNow()
}

// leaders are those of the streams that this process has open, and whether all of these are healthy. Streams with one replica stay where they are.
func (w *watch) leaders() (leaders map[string]string, healthy bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	leaders = map[string]string{}
	for stream, r := range w.streams {
		if r.replicas == 0 || r.unanswered > 0 || len(r.offline)+len(r.behind) > 0 { // lagging in one answer is ordinary under load
			return nil, false
		}
		if r.replicas > 1 {
			leaders[stream] = r.leader
		}
	}
	return leaders, true
}

// stepDown has the leader of a stream hand over.
func stepDown(ctx context.Context, conn *nats.Conn, m move) error {
	answer, err := conn.RequestWithContext(ctx, "$JS.API.STREAM.LEADER.STEPDOWN."+m.stream, fmt.Appendf(nil, `{"placement":{"preferred":%q}}`, m.to))
	if err != nil {
		return err
	}
	var a struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &a); err != nil {
		return fmt.Errorf("answer to the request to step down: %w", err)
	}
	if a.Error != nil {
		return errors.New(a.Error.Description)
	}
	return nil
}

func perServer(counts map[string]int) string {
	var parts []string
	for _, server := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s: %d", server, counts[server]))
	}
	return strings.Join(parts, ", ")
}
