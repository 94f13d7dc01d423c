package natsstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/drain"
	"github.com/levada-io/levada/internal/dataplane/shard"
	"github.com/levada-io/levada/internal/testnats"
	"github.com/levada-io/levada/internal/testserver"
)

// processes run a group over a real broker.
type processes struct {
	mu      sync.Mutex
	reading map[string]string
}

func (p *processes) join(t *testing.T, s shard.Store, name, incarnation string, shards []string) (stop context.CancelFunc, done chan error) {
	work, kill := context.WithCancel(context.Background())
	intake, drained := context.WithCancel(work)
	done = make(chan error, 1)
	t.Cleanup(kill)
	go func() {
		done <- shard.Run(drain.Context{Work: work, Intake: intake}, shard.Config{
			Store: s, Group: "shards.v", Name: name, Incarnation: incarnation, Shards: shards,
			Read: func(ctx drain.Context, o shard.Ownership) error {
				state, err := shard.OpenState(ctx.Work, s, "state.v."+o.Shard, o)
				if err != nil {
					return err
				}
				p.mu.Lock()
				p.reading[o.Shard] = name
				p.mu.Unlock()
				<-ctx.Intake.Done()
				p.mu.Lock()
				if p.reading[o.Shard] == name {
					delete(p.reading, o.Shard)
				}
				p.mu.Unlock()
				return state.Save(ctx.Work, []byte(name))
			},
		})
	}()
	return drained, done
}

// until waits until the counts of shards, sorted, are as wanted, and returns how long that took.
func (p *processes) until(t *testing.T, want ...int) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		p.mu.Lock()
		counts := map[string]int{}
		for _, name := range p.reading {
			counts[name]++
		}
		p.mu.Unlock()
		var got []int
		for _, n := range counts {
			got = append(got, n)
		}
		slices.Sort(got)
		if slices.Equal(got, want) {
			return time.Since(began)
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("after a minute the shares are %v, want %v", counts, want)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func shardNames(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("p0.s%d", i))
	}
	return all
}

// TestGroupOverACluster: a group of processes keeps and moves its shards over a cluster of three whose leaders change and die. The times are logged.
func TestGroupOverACluster(t *testing.T) {
	c := testnats.NewCluster(t, 3)
	s := open(t, c.Connect(), 3)
	p := &processes{reading: map[string]string{}}
	shards := shardNames(16)
	p.join(t, s, "a", "1", shards)
	t.Logf("the first process has 16 shards after %v", p.until(t, 16))
	p.join(t, s, "b", "1", shards)
	t.Logf("the second one has 8 after %v", p.until(t, 8, 8))
	stop, done := p.join(t, s, "c", "1", shards)
	t.Logf("the third one has its share after %v", p.until(t, 5, 5, 6))
	stop()
	t.Logf("it drains, and the others have all after %v", p.until(t, 8, 8))
	if err := <-done; err != nil {
		t.Errorf("the process that drains returns %v", err)
	}
	stream := bucketStream()
	leader := c.Leader(stream)
	c.StepDown(stream, func(l int) bool { return l != leader })
	t.Logf("the leader steps down, and the shares are even after %v", p.until(t, 8, 8))
	c.Servers[c.Leader(stream)].Stop(testserver.Killed)
	killed := time.Now()
	c.Leader(stream) // waits for another one; the processes need not have noticed, what counts is how it ends
	p.until(t, 8, 8)
	t.Logf("the leader is killed, and the shares are even after %v", time.Since(killed))
	p.join(t, s, "d", "1", shards)
	t.Logf("a third process has its share after %v", p.until(t, 5, 5, 6))
}

func bucketStream() string { return fmt.Sprintf("KV_B%d", buckets) }

// TestExpiryAcrossALeaderChange: a session must not expire early because another server leads, or a live owner loses its shards; and it must expire, or a dead one
// keeps them. It also counts what became of writes without an answer. SHARD_LONG=1 runs all of it.
func TestExpiryAcrossALeaderChange(t *testing.T) {
	c := testnats.NewCluster(t, 3)
	s := open(t, c.Connect(), 3)
	const ttl, keys = 5 * time.Second, 20
	changes := []string{"step down"}
	if os.Getenv("SHARD_LONG") != "" {
		changes = append(changes, "no change", "kill")
	}
	for _, how := range changes {
		t.Run(how, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			prefix := "x" + how[:1]
			gone := make(chan time.Duration, 10*keys)
			var mu sync.Mutex
			sent := map[string]time.Time{}
			watch := func(e shard.Entry) {
				mu.Lock()
				defer mu.Unlock()
				if !e.Present {
					gone <- time.Since(sent[e.Key])
				}
			}
			go func() { _ = s.Watch(ctx, prefix+".", watch, func() {}) }() // ends with the test
			for i := range keys {
				key := fmt.Sprintf("%s.k%d", prefix, i)
				mu.Lock()
				sent[key] = time.Now()
				mu.Unlock()
				if _, err := s.Write(ctx, key, []byte("1"), 0, ttl); err != nil {
					t.Fatal(err)
				}
			}
			stream := bucketStream()
			leader := c.Leader(stream)
			switch how {
			case "step down":
				c.StepDown(stream, func(l int) bool { return l != leader })
			case "kill":
				c.Servers[leader].Stop(testserver.Killed)
			}
			applied, lost := hammer(ctx, t, s, prefix+"h.k", map[string]time.Duration{"kill": 12 * time.Second}[how])
			var after []time.Duration
			for range keys {
				select {
				case d := <-gone:
					after = append(after, d)
				case <-time.After(time.Minute):
					t.Fatalf("%d of %d records have expired", len(after), keys)
				}
			}
			slices.Sort(after)
			t.Logf("TTL %v: expired %v to %v after they were sent; of writes without an answer %d were applied and %d not", ttl, after[0].Round(time.Millisecond), after[keys-1].Round(time.Millisecond), applied, lost)
			if after[0] < ttl {
				t.Errorf("a record expires after %v", after[0])
			}
		})
	}
}

// hammer writes one key for a while and finds out what became of each write that was not answered.
func hammer(ctx context.Context, t *testing.T, s shard.Store, key string, during time.Duration) (applied, lost int) {
	revision := uint64(0)
	for n, began := 0, time.Now(); time.Since(began) < during; n++ {
		request, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		next, err := s.Write(request, key, fmt.Append(nil, n), revision, 0)
		cancel()
		if err == nil {
			revision = next
			time.Sleep(5 * time.Millisecond)
			continue
		}
		if errors.Is(err, shard.ErrConflict) {
			t.Errorf("write %d is refused, though its writer read back what became of the one before", n)
		}
		for { // a write over the same revision orders itself behind the one without an answer: only then a read can tell
			request, cancel := context.WithTimeout(ctx, 2*time.Second)
			next, err = s.Write(request, key, fmt.Append(nil, n), revision, 0)
			cancel()
			if err == nil {
				lost++
				break
			}
			if errors.Is(err, shard.ErrConflict) {
				if e, err := s.Read(ctx, key); err == nil && e.Revision > revision && string(e.Value) == fmt.Sprint(n) {
					applied++
					next = e.Revision
					break
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
		revision = next
	}
	return applied, lost
}
