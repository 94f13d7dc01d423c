package proxy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// moody is an endpoint that changes its limit of streams, refuses, resets, says GOAWAY and hangs up, until it is calm.
func moody(e *wire, calm *atomic.Bool) {
	limit := func(n int) {
		e.later(func() error {
			return e.framer.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(n)})
		})
	}
	for {
		r, err := e.awaitFor(10*patience, func(e *event) bool { return e.get(":method") != "" })
		if err != nil {
			return
		}
		mood := rand.IntN(100)
		if calm.Load() {
			mood = 100
		}
		switch {
		case mood < 3:
			e.send(func(f *http2.Framer) error { return f.WriteGoAway(r.id, http2.ErrCodeNo, nil) })
			e.only(r.id, "0")
		case mood < 5:
			e.send(func(f *http2.Framer) error { return f.WriteGoAway(0, http2.ErrCodeNo, nil) })
		case mood < 8:
			e.rstStream(r.id, http2.ErrCodeRefusedStream)
		case mood < 10:
			_ = e.nc.Close()
			return
		case mood < 20:
			limit(rand.IntN(4))
			time.AfterFunc(20*time.Millisecond, func() { limit(2) })
			e.only(r.id, "0")
		case mood < 22:
			time.AfterFunc(time.Second, func() {
				e.later(func() error { return e.framer.WriteRSTStream(r.id, http2.ErrCodeInternal) })
			})
		case mood < 40:
			time.Sleep(rand.N(20 * time.Millisecond))
			e.only(r.id, "0")
		default:
			e.only(r.id, "0")
		}
	}
}

// forgiving is a test that does not fail when a connection is closed.
type forgiving struct{ testing.TB }

func (forgiving) Fatal(...any)          {}
func (forgiving) Fatalf(string, ...any) {}
func (forgiving) Error(...any)          {}
func (forgiving) Errorf(string, ...any) {}

// TestChaos: whatever endpoints, clients and configurations do, each call ends, and then nothing is left of it anywhere.
func TestChaos(t *testing.T) {
	var calm atomic.Bool
	handle := func(e *wire) { moody(e, &calm) }
	one := listenAt(forgiving{t}, "127.0.0.1:0", handle, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 2})
	two := listenAt(forgiving{t}, "127.0.0.1:0", handle, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 3})
	targets := []string{one.addr(), two.addr(), one.addr() + "," + two.addr(), nobody(t) + "," + one.addr()}
	text := func() string {
		return oneBackend(targets[rand.IntN(len(targets))], fmt.Sprintf("backend: maxConnections: %d", max(0, rand.IntN(4)-1)),
			fmt.Sprintf("backend: waitForReady: %dms", 200*rand.IntN(2)))
	}
	p := start(t, text())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var working sync.WaitGroup
	working.Go(func() {
		for ctx.Err() == nil {
			if err := p.Reload(parse(t, text())); err != nil {
				t.Error(err)
			}
			time.Sleep(rand.N(100 * time.Millisecond))
		}
	})
	for range 6 {
		working.Go(func() {
			c := dial(forgiving{t}, p.addr)
			for ctx.Err() == nil {
				var ids []uint32
				for range 1 + rand.IntN(4) {
					fields := []string{"grpc-timeout", "5000m"}
					if rand.IntN(2) == 0 {
						fields = append(fields, "large", unique(5000))
					}
					ids = append(ids, c.begin(rand.IntN(2) == 0, fields...))
				}
				for _, id := range ids {
					if rand.IntN(10) == 0 {
						time.Sleep(rand.N(5 * time.Millisecond))
						c.rstStream(id, http2.ErrCodeCancel)
						continue
					}
					a, err := c.endFor(id, patience)
					if err != nil {
						t.Errorf("a call does not end: %v", err)
					}
					if a.lost != nil {
						c = dial(forgiving{t}, p.addr)
						break
					}
				}
			}
		})
	}
	working.Wait()
	calm.Store(true)
	eventually(t, "no calls are open", func() bool { return p.Open() == 0 })
	for _, x := range p.state.Load().clusters {
		for _, b := range x.set.Backends() {
			if info := b.Info(p.tick()); info.Streams != 0 || info.Unary != 0 {
				t.Errorf("the balancer counts %d streams and %d calls", info.Streams, info.Unary)
			}
			e := b.Of
			e.mu.Lock()
			if n, lists := e.waits.Load(), len(e.main.waiting)+len(e.large.waiting); n != 0 || lists != 0 {
				t.Errorf("%d calls wait, and %d are in the lists", n, lists)
			}
			for _, c := range append(append(e.retired, e.main.conns...), e.large.conns...) {
				c.mu.Lock()
				if len(c.streams) > 0 {
					t.Errorf("%d streams are on a connection", len(c.streams))
				}
				c.mu.Unlock()
			}
			e.mu.Unlock()
		}
	}
	if held, heavy := p.held.Load(), len(p.heavy); held != 0 || heavy != 0 {
		t.Errorf("%d bytes are counted as held, %d places are taken for large headers", held, heavy)
	}
}
