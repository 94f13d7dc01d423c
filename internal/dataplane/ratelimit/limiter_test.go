package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memory is a Store in memory, whose requests take up to a millisecond.
type memory struct {
	mu       sync.Mutex
	value    []byte
	revision uint64
	writes   int
}

// handle is a Store as one process sees it.
type handle struct {
	*memory
	random *rand.Rand
	gate   *gate // requests wait while it is closed
	away   *gate // they wait for their deadlines while it is closed
}

// gate is open or closed. A frozen process waits at it.
type gate struct {
	mu     sync.Mutex
	closed chan struct{} // nil while it is open
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.closed)
	g.closed = nil
}

func (g *gate) channel() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

func (g *gate) pass() {
	for c := g.channel(); c != nil; c = g.channel() {
		<-c
	}
}

var errAway = errors.New("store away")

// wait is the way of a request to the store, or of its answer back. It may be lost.
func (h *handle) wait(ctx context.Context) error {
	h.gate.pass()
	time.Sleep(time.Duration(h.random.IntN(500)) * time.Microsecond)
	if h.away.channel() != nil {
		<-ctx.Done()
		return errAway
	}
	return ctx.Err()
}

func (h *handle) Get(ctx context.Context) ([]byte, uint64, error) {
	if err := h.wait(ctx); err != nil {
		return nil, 0, err
	}
	h.mu.Lock()
	value, revision := slices.Clone(h.value), h.revision
	h.mu.Unlock()
	return value, revision, h.wait(ctx)
}

func (h *handle) CompareAndSet(ctx context.Context, value []byte, revision uint64) (uint64, error) {
	if err := h.wait(ctx); err != nil {
		return 0, err
	}
	h.mu.Lock()
	conflict := h.revision != revision
	if !conflict {
		h.value, h.revision = slices.Clone(value), h.revision+1
		h.writes++
	}
	now := h.revision
	h.mu.Unlock()
	if err := h.wait(ctx); err != nil {
		return 0, err
	}
	if conflict {
		return 0, ErrConflict
	}
	return now, nil
}

// world is a vertex whose processes share a limit.
type world struct {
	rate   uint64
	store  memory
	away   gate
	random *rand.Rand
	begun  time.Time
	wait   sync.WaitGroup

	mu     sync.Mutex
	passed []passing
	// lives are those of all processes that there were.
	lives []*life
}

// passing are messages that a process let pass.
type passing struct {
	at time.Duration
	n  int
	by int
}

type life struct {
	begin, end time.Duration // end is 0 while it lives
	stop       context.CancelFunc
	frozen     gate
	freezes    []time.Duration
}

func newWorld(rate, seed uint64) *world {
	return &world{rate: rate, random: rand.New(rand.NewPCG(seed, 1)), begun: time.Now()}
}

func (w *world) now() time.Duration { return time.Since(w.begun) }

// join starts a process that always has more to do.
func (w *world) join(t *testing.T) *life {
	w.mu.Lock()
	defer w.mu.Unlock()
	ctx, stop := context.WithCancel(t.Context())
	l := &life{begin: w.now(), stop: stop}
	number := len(w.lives)
	w.lives = append(w.lives, l)
	batch := 1 + w.random.IntN(500)
	limiter := New(Config{Store: &handle{&w.store, rand.New(rand.NewPCG(uint64(number), 2)), &l.frozen, &w.away}, Name: strconv.Itoa(number), Rate: w.rate})
	w.wait.Go(func() {
		for ctx.Err() == nil {
			n := min(batch, limiter.Burst())
			if limiter.WaitN(ctx, n) != nil {
				return
			}
			l.frozen.pass() // what it was about to let pass it lets pass when it goes on
			w.mu.Lock()
			w.passed = append(w.passed, passing{w.now(), n, number})
			w.mu.Unlock()
		}
	})
	return l
}

func (w *world) die(l *life) {
	l.stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	l.end = w.now()
}

// end ends all processes.
func (w *world) end() {
	for _, l := range w.lives {
		l.stop()
	}
	w.wait.Wait()
}

const window = 10 * time.Second

// check looks at each window of ten seconds from some time on.
func (w *world) check(t *testing.T, from, to time.Duration, size int) {
	t.Helper()
	worst, best := 2.0, 0.0
	for begin := from; begin+window <= to; begin += 100 * time.Millisecond {
		sum, members, gone := 0, 0, 0
		since := begin - 100*time.Duration(size)*time.Second/time.Duration(5*w.rate) // grants of those that had ended before are due in the window
		for _, p := range w.passed {
			if p.at > begin && p.at <= begin+window {
				sum += p.n
			}
		}
		for _, l := range w.lives {
			if l.begin <= begin+window && (l.end == 0 || l.end > begin) {
				members++
			}
			if l.end > since && l.end <= begin+window {
				gone++
			}
			for _, f := range l.freezes {
				if f > since && f <= begin+window {
					gone++
				}
			}
		}
		all := float64(w.rate) * window.Seconds()
		most := all + float64(4*size*members)
		least := 0.95 * all
		if w.rate < 100 { // a process takes three messages with it, of few
			least = min(least, all-float64(size*(2+3*gone)))
		}
		if float64(sum) > most || float64(sum) < least {
			t.Errorf("from %v on %d messages passed in %v, at %d a second for %d processes of which %d ended or froze; wanted %.0f to %.0f", begin, sum, window, w.rate, members, gone, least, most)
			return
		}
		worst, best = min(worst, float64(sum)/all), max(best, float64(sum)/all)
	}
	t.Logf("%d a second, %d processes: %.1f %% to %.1f %% of the limit in ten seconds, %.1f writes a second", w.rate, len(w.lives), 100*worst, 100*best, float64(w.store.writes)/w.now().Seconds())
}

// TestAllProcessesTogetherKeepTheLimit lets one to eight processes join, die and freeze for a minute, in virtual time. RATELIMIT_SEEDS is how many such minutes.
func TestAllProcessesTogetherKeepTheLimit(t *testing.T) {
	seeds, err := strconv.Atoi(os.Getenv("RATELIMIT_SEEDS"))
	if err != nil {
		seeds = 40
	}
	for seed := range uint64(seeds) {
		rate := []uint64{7, 100, 1000, 12_345}[seed%4]
		t.Run(fmt.Sprintf("%d a second, seed %d", rate, seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(rate, seed)
				size := New(Config{Rate: rate}).Burst()
				alive := []*life{w.join(t)}
				for range w.random.IntN(8) {
					alive = append(alive, w.join(t))
				}
				const minute = 60 * time.Second
				for w.now() < minute {
					time.Sleep(4*time.Second + time.Duration(w.random.IntN(4000))*time.Millisecond)
					i := w.random.IntN(len(alive))
					switch what := w.random.IntN(3); {
					case what == 0 && len(alive) < 8:
						alive = append(alive, w.join(t))
					case what == 1 && len(alive) > 1:
						w.die(alive[i])
						alive = slices.Delete(alive, i, i+1)
					case what == 2 && len(alive) > 1:
						l := alive[i]
						l.freezes = append(l.freezes, w.now())
						l.frozen.close()
						time.Sleep(time.Duration(w.random.IntN(3000)) * time.Millisecond)
						l.frozen.open()
					}
				}
				w.end()
				w.check(t, 0, minute, size)
			})
		})
	}
}

// TestProcessesHaveEqualShares: those that have enough to do take turns.
func TestProcessesHaveEqualShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2000, 1)
		for range 5 {
			w.join(t)
		}
		time.Sleep(30 * time.Second)
		w.end()
		share := map[int]int{}
		for _, p := range w.passed {
			share[p.by] += p.n
		}
		for by, n := range share {
			if n < 11_000 || n > 13_000 {
				t.Errorf("process %d let %d of 60000 messages pass: %v", by, n, share)
			}
		}
	})
}

// TestTheStoreIsAway: nothing passes for a second, then each process goes on with its share, and when the store is back the limit is shared as before.
func TestTheStoreIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1000
		w := newWorld(rate, 1)
		for range 4 {
			w.join(t)
		}
		time.Sleep(20 * time.Second)
		w.away.close()
		left := w.now()
		time.Sleep(30 * time.Second)
		late := w.join(t) // it has no share, and waits
		time.Sleep(10 * time.Second)
		w.away.open()
		back := w.now()
		time.Sleep(20 * time.Second)
		w.end()
		between := func(from, to time.Duration) (n int) {
			for _, p := range w.passed {
				if p.at > from && p.at <= to {
					n += p.n
				}
			}
			return n
		}
		size := New(Config{Rate: rate}).Burst()
		if n := between(left+time.Second/2, left+time.Second); n > 4*3*size {
			t.Errorf("%d messages passed in the first second without the store", n)
		}
		for at := left + 2*time.Second; at+window < back; at += time.Second {
			if n := between(at, at+window); n < 9*rate || n > 10*rate+4*4*size {
				t.Errorf("%d messages passed in ten seconds without the store, %v after it had gone", n, at-left)
			}
		}
		for _, p := range w.passed {
			if w.lives[p.by] == late && p.at < back {
				t.Fatalf("a process that had never a share let %d pass without the store", p.n)
			}
		}
		w.check(t, 0, left, size)
		w.check(t, back+time.Second, w.now(), size)
	})
}

// TestAnAnswerThatIsLostCostsNothing: a grant that was taken by a request without an answer is used, once.
func TestAnAnswerThatIsLostCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &lossy{handle: handle{&memory{}, rand.New(rand.NewPCG(1, 1)), &gate{}, &gate{}}}
		l := New(Config{Store: store, Name: "a", Rate: 1000})
		begun := time.Now()
		for range 20 {
			if err := l.WaitN(t.Context(), 50); err != nil {
				t.Fatal(err)
			}
		}
		// Each lost answer costs its deadline and a retry, but grants go on from the last one.
		if took := time.Since(begun); took < time.Second || took > 6*time.Second {
			t.Errorf("1000 messages at 1000 a second took %v", took)
		}
		if store.writes > 20+ahead {
			t.Errorf("%d grants were taken for 20 that were used", store.writes)
		}
	})
}

// lossy loses the answer to every third compare-and-set.
type lossy struct {
	handle
	n int
}

func (l *lossy) CompareAndSet(ctx context.Context, value []byte, revision uint64) (uint64, error) {
	now, err := l.handle.CompareAndSet(ctx, value, revision)
	if l.n++; l.n%3 == 0 {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return now, err
}

func TestADamagedRecordIsAnError(t *testing.T) {
	if _, err := decode([]byte("no record")); err == nil {
		t.Error("a damaged record is read")
	}
}
