package stream_test

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/stream"
)

// callers is how deep the stack is.
func callers() int { return runtime.Callers(0, make([]uintptr, 4096)) }

func insecureTo(dial func(context.Context, string) (net.Conn, error)) []grpc.DialOption {
	return []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dial)}
}

// die runs one process after the other, in the same pod, until the jobs are final, and returns how many died. A process dies when its
// handler is given a record that kills.
func (l *lab) die(name string, jobs []string, kills func(job string, seq uint64) bool) (deaths int) {
	l.t.Helper()
	config := l.config
	defer func() { l.config = config }()
	final := func() bool {
		return !slices.ContainsFunc(jobs, func(id string) bool { return !l.get(id).State.Final() })
	}
	for !final() {
		if deaths > 200 {
			l.t.Fatalf("%d processes died", deaths)
		}
		var process mortal
		var once sync.Once
		died := make(chan struct{})
		l.config.Store = process.store(config.Store)
		l.config.Owner = stream.Owner{Pod: "p", PodUID: "p", Incarnation: newProcess()}
		alive := func(context.Context, string) error { return process.alive() }
		w := l.start(name, &interceptedSink{before: alive, ReplaySink: l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			for _, r := range b.Records {
				if kills(b.Job.ID, r.Seq) {
					process.dead.Store(true)
					once.Do(func() { close(died) })
				}
			}
			if err := process.alive(); err != nil {
				return nil, err
			}
			keep, err := l.table.handle(ctx, b)
			if dead := process.alive(); dead != nil { // it died meanwhile
				return nil, dead
			}
			return keep, err
		})})
		l.await("dead, or the end", 24*time.Hour, func() bool {
			select {
			case <-died:
				return true
			default:
				return final()
			}
		})
		if process.dead.Load() {
			deaths++
		}
		w.stop()
	}
	return deaths
}

// A record that kills its process is found after at most ceil(log2(batch)) deaths and as many more as the configuration says, wherever it
// stands in its batch.
func TestDeathsUntilPoisonIsFound(t *testing.T) {
	for _, batch := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 31, 33, 100, 1000} {
		for _, needed := range []int{1, 2, 3} {
			n := 2*batch + 3
			positions := []int{1, 2, batch/2 + 1, batch, batch + 1, batch + batch/2 + 1, 2 * batch, n}
			if batch <= 9 {
				positions = nil
				for i := range n {
					positions = append(positions, i+1)
				}
			}
			most := bits.Len(uint(batch-1)) + needed
			if batch == 1 {
				most = 1 + needed // the first death cannot be foreseen, so it is no evidence yet
			}
			slices.Sort(positions)
			worst := 0
			for _, position := range slices.Compact(positions) {
				synctest.Test(t, func(t *testing.T) {
					p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(n)...))
					l := newLab(t, p.connections(t).Dial)
					l.config.CommitRecords, l.config.MaxCrashes = batch, needed
					job := l.submit(stream.Job{Stream: "s"})
					deaths := l.die("s", []string{job.ID}, func(_ string, seq uint64) bool { return int(seq) == position })
					l.is(l.get(job.ID), stream.Completed, "")
					if deaths > most {
						t.Errorf("batches of %d, record %d: %d deaths, and %d are enough", batch, position, deaths, most)
					}
					worst = max(worst, deaths)
					must(t, l.table.holds(numbers(n), uint64(position)))
					if rows := l.aside(job.ID); len(rows) != 1 || rows[0].Seq != uint64(position) || rows[0].Class != stream.ClassCrash || rows[0].Attempts != needed {
						t.Errorf("quarantine: %+v", rows)
					}
				})
			}
			if worst != most && batch > 1 && bits.OnesCount(uint(batch)) == 1 {
				t.Errorf("batches of %d: at worst %d deaths; the bound of %d is not sharp, so somebody changed the search", batch, worst, most)
			}
		}
	}
}

// Several records that kill, next to each other and apart, are all found, and no other.
func TestManyPoisonRecords(t *testing.T) {
	for _, poison := range [][]uint64{{1}, {1, 2, 3}, {50}, {10, 11, 40, 41, 50}, {7, 9, 11, 13, 15}} {
		synctest.Test(t, func(t *testing.T) {
			p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(50)...))
			l := newLab(t, p.connections(t).Dial)
			l.config.CommitRecords = 16
			job := l.submit(stream.Job{Stream: "s"})
			deaths := l.die("s", []string{job.ID}, func(_ string, seq uint64) bool { return slices.Contains(poison, seq) })
			if most := len(poison) * (4 + 2); deaths > most {
				t.Errorf("%d deaths for %v, and %d are enough", deaths, poison, most)
			}
			must(t, l.table.holds(numbers(50), poison...))
		})
	}
}

// With HaltJob the job fails before the record that kills.
func TestPoisonHaltsAJobThatHalts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(50)...))
		l := newLab(t, p.connections(t).Dial)
		l.config.CommitRecords = 16
		job := l.submit(stream.Job{Stream: "s", OnBad: stream.HaltJob})
		l.die("s", []string{job.ID}, func(_ string, seq uint64) bool { return seq == 20 })
		l.is(l.get(job.ID), stream.Failed, stream.ReasonHalted)
		must(t, l.table.holds(numbers(19)))
		if rows := l.aside(job.ID); len(rows) != 0 {
			t.Errorf("quarantine: %+v", rows)
		}
	})
}

// Several jobs are in one process when one of them kills it. Only the record that kills is quarantined.
func TestPoisonAmongOtherJobs(t *testing.T) {
	for _, killers := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(60)...))
			l := newLab(t, p.connections(t).Dial)
			l.config.CommitRecords = 8
			var jobs []string
			for i := range 6 {
				jobs = append(jobs, l.submit(stream.Job{ID: fmt.Sprintf("j%d", i), Stream: "s"}).ID)
			}
			poisonous := func(id string) bool { return slices.Index(jobs, id) < killers }
			deaths := l.die("s", jobs, func(id string, seq uint64) bool { return poisonous(id) && seq == 30 })
			for _, id := range jobs {
				l.is(l.get(id), stream.Completed, "")
				rows := l.aside(id)
				switch {
				case poisonous(id) && (len(rows) != 1 || rows[0].Seq != 30):
					t.Errorf("%s: quarantine %+v", id, rows)
				case !poisonous(id) && len(rows) != 0:
					t.Errorf("%s is innocent: quarantine %+v", id, rows)
				}
			}
			t.Logf("%d poisonous jobs of 6: %d deaths", killers, deaths)
		})
	}
}

// Processes that are killed from outside, at any moment and again and again, put nothing aside.
func TestDeathsFromOutsideBlameNobody(t *testing.T) {
	for seed := range 30 {
		synctest.Test(t, func(t *testing.T) {
			p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(200)...))
			l := newLab(t, p.connections(t).Dial)
			l.config.CommitRecords = 8
			job := l.submit(stream.Job{Stream: "s"})
			n := 0
			l.die("s", []string{job.ID}, func(string, uint64) bool {
				n++
				return (n*2654435761+seed*40503)%97 == 0 // no record of its own
			})
			l.is(l.get(job.ID), stream.Completed, "")
			must(t, l.table.holds(numbers(200)))
		})
	}
}

// A handler that panics or refuses costs that record only, found by halving within the process.
func TestBadRecordsAreFoundByHalving(t *testing.T) {
	for _, class := range []stream.Class{stream.ClassPanic, stream.ClassRefused} {
		for _, bad := range [][]uint64{{1}, {64}, {100}, {3, 4, 5}, {1, 50, 51, 100}} {
			withProducer(t, stream.Slice(numbers(100)...), func(l *lab) {
				calls := 0
				l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
					calls++
					for _, r := range b.Records {
						if !slices.Contains(bad, r.Seq) {
							continue
						}
						if class == stream.ClassPanic {
							panic(fmt.Sprintf("record %d", r.Seq))
						}
						return nil, fmt.Errorf("wrapped: %w", stream.Skip(errors.New("refused")))
					}
					return l.table.handle(ctx, b)
				}))
				job := l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour)
				l.is(job, stream.Completed, "")
				must(t, l.table.holds(numbers(100), bad...))
				rows := l.aside(job.ID)
				for i, row := range rows {
					if row.Class != class || row.Seq != bad[i] || string(row.Key) != string(numbers(100)[row.Seq-1].Key) || string(row.Payload) != string(numbers(100)[row.Seq-1].Value) {
						t.Errorf("quarantine: %+v", row)
					}
				}
				if len(rows) != len(bad) || int(job.Progress.Bad) != len(bad) || calls > len(bad)*(2*8+4) {
					t.Errorf("%d rows, %d bad, %d calls", len(rows), job.Progress.Bad, calls)
				}
			})
		}
	}
}

// Too many bad records fail the job, and those that were committed before stay.
func TestTooManyBadRecords(t *testing.T) {
	withProducer(t, stream.Slice(numbers(100)...), func(l *lab) {
		l.config.CommitRecords = 5
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			good := *b
			good.Records = nil
			for _, r := range b.Records {
				if r.Seq%10 == 0 {
					b.Skip(r, errors.New("refused"))
				} else {
					good.Records = append(good.Records, r)
				}
			}
			return l.table.handle(ctx, &good)
		}))
		job := l.end(l.submit(stream.Job{Stream: "s", MaxBad: 3}).ID, time.Hour)
		l.is(job, stream.Failed, stream.ReasonTooManyBad)
		if job.Progress.Bad != 3 || job.Progress.Records != 35 {
			t.Errorf("%+v", job.Progress)
		}
		must(t, l.table.holds(numbers(35), 10, 20, 30))
	})
}

// An innocent job that is always in flight while others, each for the first time, kill the process: what they do must not be blamed on it.
func TestFreshPoisonBesideASuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(20)...))
		l := newLab(t, p.connections(t).Dial)
		l.config.CommitRecords, l.config.MaxJobs = 8, 3
		l.table.slow = map[string]time.Duration{"innocent": 5 * time.Second}
		jobs := []string{l.submit(stream.Job{ID: "innocent", Stream: "s", Priority: 1}).ID}
		for i := range 24 {
			jobs = append(jobs, l.submit(stream.Job{ID: fmt.Sprintf("poison%d", i), Stream: "s"}).ID)
		}
		l.die("s", jobs, func(id string, seq uint64) bool {
			if id == "innocent" || seq != 1 {
				return false
			}
			time.Sleep(time.Second) // the innocent has records in flight by then
			return true
		})
		if rows := l.aside("innocent"); len(rows) != 0 {
			t.Errorf("quarantine of the innocent job: %+v", rows)
		}
		for _, id := range jobs[1:] {
			if rows := l.aside(id); len(rows) != 1 || rows[0].Seq != 1 {
				t.Errorf("%s: quarantine %+v", id, rows)
			}
		}
	})
}
