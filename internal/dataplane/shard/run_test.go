package shard_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/internal/dataplane/drain"
	"github.com/levada-io/levada/internal/dataplane/shard"
)

// group is some processes with one store.
type group struct {
	t      *testing.T
	store  shard.Store
	shards []string
	finish time.Duration // how long a reader takes to finish what is in flight
	lossy  float64       // how often members lose an answer
	random *rand.Rand
	log    *slog.Logger

	mu     sync.Mutex
	owners map[string]string // by shard: who reads it
	starts []start
	ends   map[string]time.Time
}

type start struct {
	shard, name string
	epoch       uint64
	at          time.Time
}

func newGroup(t *testing.T, shards int) *group {
	g := &group{t: t, store: shard.NewMemory(), owners: map[string]string{}, ends: map[string]time.Time{}}
	for i := range shards {
		g.shards = append(g.shards, fmt.Sprintf("p0.s%d", i))
	}
	return g
}

// member is a process.
type member struct {
	drain, kill context.CancelFunc
	done        chan error
	cut         *cutStore
}

// join starts a process. It ends with the test.
func (g *group) join(name, incarnation string) *member {
	work, kill := context.WithCancel(context.Background())
	intake, drained := context.WithCancel(work)
	m := &member{drained, kill, make(chan error, 1), &cutStore{Store: g.store, lossy: g.lossy}}
	if g.random != nil {
		m.cut.random = rand.New(rand.NewPCG(g.random.Uint64(), 0))
	}
	g.t.Cleanup(func() { kill() })
	go func() {
		m.done <- shard.Run(drain.Context{Work: work, Intake: intake}, shard.Config{
			Store: m.cut, Group: "shards.v", Name: name, Incarnation: incarnation, Shards: g.shards, Logger: g.log,
			Read: func(ctx drain.Context, o shard.Ownership) error { return g.read(ctx, o, name+"/"+incarnation) },
		})
	}()
	return m
}

// read says who reads, and takes a while to finish.
func (g *group) read(ctx drain.Context, o shard.Ownership, name string) error {
	g.mu.Lock()
	if other := g.owners[o.Shard]; other != "" {
		g.t.Errorf("%s starts %s while %s reads it", name, o.Shard, other)
	}
	g.owners[o.Shard] = name
	g.starts = append(g.starts, start{o.Shard, name, o.Epoch, time.Now()})
	g.mu.Unlock()
	<-ctx.Intake.Done()
	select {
	case <-ctx.Work.Done():
	case <-time.After(g.finish):
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.owners, o.Shard)
	g.ends[o.Shard] = time.Now()
	return nil
}

// shares is how many shards each process reads.
func (g *group) shares() map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := map[string]int{}
	for _, name := range g.owners {
		n[name]++
	}
	return n
}

// until waits until the processes have these shares.
func (g *group) until(limit time.Duration, want map[string]int) time.Duration {
	g.t.Helper()
	began := time.Now()
	for {
		got := g.shares()
		same := len(got) == len(want)
		for name, n := range want {
			same = same && got[name] == n
		}
		if same {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			g.t.Fatalf("after %v the shares are %v, want %v", limit, got, want)
		}
		time.Sleep(time.Millisecond)
	}
}

// cutStore is what a process sees of a store that it may not reach.
type cutStore struct {
	shard.Store
	mu     sync.Mutex
	cut    bool
	lossy  float64 // how often an answer is lost
	random *rand.Rand
}

var errLost = errors.New("connection lost")

// reach reports whether a request arrives, and whether its answer will.
func (c *cutStore) reach(ctx context.Context) (arrives, answered bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return false, false
	}
	if c.lossy > 0 && c.random.Float64() < c.lossy {
		return c.random.Float64() < 0.5, false
	}
	return true, true
}

func (c *cutStore) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
}

func (c *cutStore) Write(ctx context.Context, key string, value []byte, expect uint64, ttl time.Duration) (revision uint64, err error) {
	return c.do(ctx, func() (uint64, error) { return c.Store.Write(ctx, key, value, expect, ttl) })
}

func (c *cutStore) Remove(ctx context.Context, key string, expect uint64) (uint64, error) {
	return c.do(ctx, func() (uint64, error) { return c.Store.Remove(ctx, key, expect) })
}

func (c *cutStore) do(ctx context.Context, request func() (uint64, error)) (revision uint64, err error) {
	arrives, answered := c.reach(ctx)
	if arrives {
		revision, err = request()
	}
	if !answered {
		<-ctx.Done()
		return 0, errLost
	}
	return revision, err
}

func (c *cutStore) Watch(ctx context.Context, prefix string, deliver func(shard.Entry), synced func()) error {
	return c.Store.Watch(ctx, prefix, func(e shard.Entry) {
		for arrives := false; !arrives && ctx.Err() == nil; {
			if arrives, _ = c.reach(ctx); !arrives {
				time.Sleep(10 * time.Millisecond)
			}
		}
		deliver(e)
	}, synced)
}

// TestShardsMoveWhenMembersComeAndGo: the times of the hand-over, which users see as a pause of their pipeline.
func TestShardsMoveWhenMembersComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 8)
		g.finish = 50 * time.Millisecond
		g.join("a", "1")
		t.Logf("the first takes all after %v", g.until(time.Second, map[string]int{"a/1": 8}))
		b := g.join("b", "1")
		t.Logf("the second has half after %v", g.until(2*time.Second, map[string]int{"a/1": 4, "b/1": 4}))
		b.drain()
		if took := g.until(5*time.Second, map[string]int{"a/1": 8}); took > g.finish+200*time.Millisecond {
			t.Errorf("SIGTERM: the other one has all after %v, want at most 200 ms after the work in flight is finished", took)
		}
		if err := <-b.done; err != nil {
			t.Errorf("a member that drains returns %v", err)
		}
	})
}

// TestRestartedProcessTakesItsShardsAtOnce: a crash of a process that the kubelet restarts costs no TTL.
func TestRestartedProcessTakesItsShardsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 8)
		a := g.join("a", "1")
		g.join("b", "1")
		g.until(5*time.Second, map[string]int{"a/1": 4, "b/1": 4})
		a.cut.set(true)
		a.kill()
		<-a.done
		g.join("a", "2")
		if took := g.until(5*time.Second, map[string]int{"a/2": 4, "b/1": 4}); took > 200*time.Millisecond {
			t.Errorf("the restarted process has its shards after %v", took)
		}
	})
}

// TestKilledProcessLosesItsShardsAfterTTL also checks that a process which the store does not see any more stops before another one starts: read fails otherwise.
func TestKilledProcessLosesItsShardsAfterTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 8)
		a := g.join("a", "1")
		g.join("b", "1")
		g.until(5*time.Second, map[string]int{"a/1": 4, "b/1": 4})
		a.cut.set(true)
		took := g.until(10*time.Second, map[string]int{"b/1": 8})
		if took > 6*time.Second {
			t.Errorf("the shards of a lost process have an owner after %v", took)
		}
		a.cut.set(false)
		back := g.until(10*time.Second, map[string]int{"a/1": 4, "b/1": 4})
		t.Logf("taken over after %v; the process that comes back has its share after %v", took, back)
		epochs := map[string]uint64{}
		for _, s := range g.starts {
			if s.epoch <= epochs[s.shard] {
				t.Errorf("%s starts %s under epoch %d after %d", s.name, s.shard, s.epoch, epochs[s.shard])
			}
			epochs[s.shard] = s.epoch
		}
	})
}

// TestSecondProcessOfTheSameNameEndsTheFirst: two that take the name from each other would move shards without end.
func TestSecondProcessOfTheSameNameEndsTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 2)
		first := g.join("a", "1")
		g.until(time.Second, map[string]int{"a/1": 2})
		g.mu.Lock()
		g.owners = map[string]string{} // both may read for a moment; what they save is fenced
		g.mu.Unlock()
		g.join("a", "2")
		if err := <-first.done; !errors.Is(err, shard.ErrSuperseded) {
			t.Errorf("the first process ends with %v", err)
		}
	})
}

// TestFailedReaderEndsRun: an error of a reader must not be lost, and must not hold the other shards back.
func TestFailedReaderEndsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("disk is full")
		store := shard.NewMemory()
		err := shard.Run(drain.Context{Work: t.Context(), Intake: t.Context()}, shard.Config{
			Store: store, Group: "g", Name: "a", Incarnation: "1", Shards: []string{"s0", "s1"},
			Read: func(ctx drain.Context, o shard.Ownership) error {
				if o.Shard == "s1" {
					return broken
				}
				<-ctx.Intake.Done()
				return nil
			},
		})
		if !errors.Is(err, broken) {
			t.Errorf("Run returns %v", err)
		}
		if e, _ := store.Read(t.Context(), "g.member.a"); e.Present {
			t.Error("the member has left its session behind")
		}
	})
}

// TestLostAnswersDoNotStopTheGroup: an answer that is lost says nothing about whether a write was applied. Members must find out, and agree.
func TestLostAnswersDoNotStopTheGroup(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, 9)
			g.lossy, g.random = 0.3, rand.New(rand.NewPCG(seed, 0))
			members := []*member{}
			for i := range 3 {
				members = append(members, g.join(fmt.Sprint("m", i), "1"))
			}
			time.Sleep(20 * time.Second)
			for _, m := range members {
				m.cut.mu.Lock()
				m.cut.lossy = 0
				m.cut.mu.Unlock()
			}
			g.until(15*time.Second, map[string]int{"m0/1": 3, "m1/1": 3, "m2/1": 3})
			for _, m := range members {
				m.drain()
			}
			for _, m := range members {
				if err := <-m.done; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestZombieCannotSave: a process that was frozen for longer than its lease still has a save in its memory. It must be refused, whatever the process believes.
func TestZombieCannotSave(t *testing.T) {
	store, ctx := shard.NewMemory(), t.Context()
	open := func(epoch uint64, incarnation string) (*shard.State, error) {
		return shard.OpenState(ctx, store, "state.s0", shard.Ownership{Shard: "s0", Epoch: epoch, Incarnation: incarnation})
	}
	zombie, err := open(3, "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := zombie.Save(ctx, []byte("1")); err != nil {
		t.Fatal(err)
	}
	owner, err := open(4, "b")
	if err != nil {
		t.Fatal(err)
	}
	if string(owner.Value()) != "1" {
		t.Errorf("the new owner begins with %q", owner.Value())
	}
	if err := zombie.Save(ctx, []byte("2")); !errors.Is(err, shard.ErrFenced) {
		t.Errorf("a zombie saves: %v", err)
	}
	if err := owner.Save(ctx, []byte("3")); err != nil {
		t.Error(err)
	}
	if _, err := open(3, "a"); !errors.Is(err, shard.ErrFenced) {
		t.Errorf("a zombie opens the state again: %v", err)
	}
	if _, err := open(4, "c"); !errors.Is(err, shard.ErrFenced) {
		t.Errorf("another process with the same epoch, as after a store that lost its end, opens the state: %v", err)
	}
}

// TestLostAnswerOfASave: the save was applied, its answer was lost. The owner must neither stop nor lose what it saved.
func TestLostAnswerOfASave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(50) {
			memory := shard.NewMemory()
			store := &cutStore{Store: memory, lossy: 0.4, random: rand.New(rand.NewPCG(seed, 1))}
			s, err := shard.OpenState(t.Context(), store, "state.s0", shard.Ownership{Shard: "s0", Epoch: 1, Incarnation: "a"})
			if err != nil {
				t.Fatal(err)
			}
			for i := range 10 {
				if err := s.Save(t.Context(), []byte{byte(i)}); err != nil {
					t.Fatal(err)
				}
			}
			next, err := shard.OpenState(t.Context(), memory, "state.s0", shard.Ownership{Shard: "s0", Epoch: 2, Incarnation: "b"})
			if err != nil || !slices.Equal(next.Value(), []byte{9}) {
				t.Fatalf("the next owner finds %v, %v", next.Value(), err)
			}
		}
	})
}

// TestStoreThatDoesNotAnswerIsLoggedOnce: a process that cannot reach the store, or may not write to it, gets no shards. Without a line nobody learns why.
func TestStoreThatDoesNotAnswerIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 2)
		var logged bytes.Buffer
		g.log = slog.New(slog.NewTextHandler(&logged, nil))
		m := g.join("a", "1")
		m.cut.set(true)
		time.Sleep(30 * time.Second)
		m.cut.set(false)
		g.until(5*time.Second, map[string]int{"a/1": 2})
		m.drain()
		<-m.done
		if n := strings.Count(logged.String(), "lease store does not answer"); n != 1 || !strings.Contains(logged.String(), errLost.Error()) {
			t.Errorf("logged %d times:\n%s", n, &logged)
		}
		if !strings.Contains(logged.String(), "lease store answers again") {
			t.Errorf("the end is not logged:\n%s", &logged)
		}
	})
}
