package faults

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
)

// overRedis is the command line of a process of a vertex with Redis as its broker, from one with NATS.
func overRedis(args []string) (redis []string) {
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "--nats":
			redis = append(redis, "--redis")
		case "--replicas":
			i++ // Redis has its own
		default:
			redis = append(redis, args[i])
		}
	}
	return redis
}

// redisPartitions is the number of partitions of the vertex that is shared.
const redisPartitions = 4

// redisAway is longer than processes keep their partitions without their broker.
const redisAway = 6 * time.Second

// redisFaults are what goes wrong in a run over Redis: each comes once, and then at random.
var redisFaults = []func(t *testing.T, r *sharedRun, others []*member) string{
	joinOrLeave,
	redisKilled,
	killedAtOnce,
	frozen,
	leaves,
	redisGone,
	killedForLonger,
	otherKilled,
	redisFrozen,
}

// TestSharedVertexLedgerOverRedis is TestSharedVertexLedger over Redis, which syncs its file before each answer, and is killed, frozen and kept away, too. Each line comes out once.
func TestSharedVertexLedgerOverRedis(t *testing.T) {
	r := &sharedRun{members: map[string]*member{}, moves: moves{left: map[string]departure{}, owner: map[string]string{}, took: map[string][]time.Duration{}, ready: map[string]bool{}}}
	rounds := max(len(redisFaults), ledgerKills)
	r.redis = true
	r.lines = max(ledgerLines/2, rounds*3000)
	if ledgerLines >= longLedger {
		r.lines = ledgerLines
	}
	r.random = rand.New(rand.NewPCG(seed, 6))
	t.Logf("LEDGER_SEED=%d", seed)
	r.dir = t.TempDir()
	r.ledger = newLedger(t, r.dir, r.lines, plain)
	r.file = filepath.Join(r.dir, "pipeline.yaml")
	r.write(t, fmt.Sprintf(sharedManifest, max(1000, r.lines/(rounds*5)), program(t, "cat"), redisPartitions))
	address := testserver.FreeAddress(t)
	r.url = "redis://" + address
	command := r.redisServer(t, address)
	r.broker = &supervisor{name: "Redis", command: func() *exec.Cmd { return exec.Command(command[0], command[1:]...) }}
	r.background(t, t.Context(), r.broker)
	waitFor(t, address)
	in := []*member{r.start(t, "in", "in-a"), r.start(t, "in", "in-b")}
	out := []*member{r.start(t, "out", "out-a"), r.start(t, "out", "out-b")}
	others := append(slices.Clone(in), out...)
	r.join(t, "a")
	r.join(t, "b")
	r.working(t)
	allRead := func() bool { return r.moves.owned() == redisPartitions }
	r.until(t, "all partitions are read", allRead)
	begun, done, resumed := time.Now(), map[string]int{}, map[string][]time.Duration{}
	for n := 0; n < rounds || r.lineCount(t) < r.lines; n++ {
		fault := redisFaults[n%len(redisFaults)]
		if n >= len(redisFaults) {
			fault = redisFaults[r.random.IntN(len(redisFaults))]
		}
		how := fault(t, r, others)
		done[how]++
		before, ended := r.size(), time.Now()
		r.until(t, "lines come out after: "+how, func() bool { return r.size() > before || r.lineCount(t) >= r.lines })
		resumed[how] = append(resumed[how], time.Since(ended))
		r.until(t, "all partitions are read after: "+how, allRead)
		if time.Since(begun) > 30*time.Minute*time.Duration(1+r.lines/longLedger) {
			t.Fatal("the run does not come to its end")
		}
	}
	r.until(t, "all lines are out", func() bool { return r.lineCount(t) >= r.lines })
	for name := range r.members {
		r.leave(t, name)
	}
	for _, m := range others {
		r.terminate(t, m)
	}
	r.broker.checkExits(t)
	r.check(t, plain, nothing)
	t.Logf("%d lines in %v; %v", r.lines, time.Since(begun).Round(time.Second), done)
	for what, times := range map[string]map[string][]time.Duration{"a partition is read again after": r.moves.took, "lines come out again after": resumed} {
		for _, how := range slices.Sorted(maps.Keys(times)) {
			all := times[how]
			slices.Sort(all)
			t.Logf("%s: %-28s %4d times, median %8v, longest %8v", what, how, len(all), all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond))
		}
	}
}

// anyMember is a random process of the shared vertex, which runs.
func (r *sharedRun) anyMember(t *testing.T) *member {
	t.Helper()
	names := slices.Sorted(maps.Keys(r.members))
	m := r.members[names[r.random.IntN(len(names))]]
	r.awaitReady(t, m)
	return m
}

// joinOrLeave adds a process to fewer than four, and otherwise ends one.
func joinOrLeave(t *testing.T, r *sharedRun, _ []*member) string {
	if len(r.members) == 4 {
		r.leave(t, r.anyMember(t).name)
		return "SIGTERM"
	}
	for i := 0; ; i++ {
		if name := string(rune('a' + i)); r.members[name] == nil {
			r.join(t, name)
			r.until(t, "the new member runs", func() bool { return r.moves.isReady(name) })
			return "a process joined"
		}
	}
}

func leaves(t *testing.T, r *sharedRun, others []*member) string {
	if len(r.members) < 3 {
		return joinOrLeave(t, r, others)
	}
	r.leave(t, r.anyMember(t).name)
	return "SIGTERM"
}

func killedAtOnce(t *testing.T, r *sharedRun, _ []*member) string {
	m := r.anyMember(t)
	r.moves.stopped(m.name, "SIGKILL, again at once")
	m.kill()
	return "SIGKILL"
}

func killedForLonger(t *testing.T, r *sharedRun, _ []*member) string {
	m := r.anyMember(t)
	r.moves.stopped(m.name, "SIGKILL, for longer")
	release := m.hold()
	time.Sleep(outOfLease) // the fault itself
	release()
	return "SIGKILL for longer"
}

func frozen(t *testing.T, r *sharedRun, _ []*member) string {
	m := r.anyMember(t)
	r.moves.stopped(m.name, "SIGSTOP")
	m.signal(syscall.SIGSTOP)
	time.Sleep(frozenFor) // the fault itself
	m.signal(syscall.SIGCONT)
	return "SIGSTOP"
}

func otherKilled(t *testing.T, r *sharedRun, others []*member) string {
	m := others[r.random.IntN(len(others))]
	r.awaitReady(t, m)
	r.moves.stopped(m.name, "SIGKILL")
	m.kill()
	return "source or sink killed"
}

// redisKilled: Redis is there again before a lease can expire, and its processes keep what they read.
func redisKilled(_ *testing.T, r *sharedRun, _ []*member) string {
	r.broker.kill()
	return "Redis killed"
}

func redisGone(_ *testing.T, r *sharedRun, _ []*member) string {
	release := r.broker.hold()
	time.Sleep(redisAway) // the fault itself
	r.moves.allLeft("Redis away")
	release()
	return "Redis away"
}

func redisFrozen(_ *testing.T, r *sharedRun, _ []*member) string {
	r.broker.signal(syscall.SIGSTOP)
	time.Sleep(redisAway) // the fault itself
	r.moves.allLeft("Redis frozen")
	r.broker.signal(syscall.SIGCONT)
	return "Redis frozen"
}

// allLeft notes that all processes have stopped to read by themselves. What they read before counts as left until it is taken again.
func (m *moves) allLeft(how string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for shard := range m.owner {
		m.left[shard] = departure{how, time.Now()}
	}
}
