package hostile

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"
)

// Want is what the proxy must do about an attack, beyond living on, serving everybody else and keeping its memory.
type Want int

const (
	// Bounded is nothing more: what is sent is allowed, there is only much of it.
	Bounded Want = iota
	// Refused is an answer that says no, to the stream or to the connection.
	Refused
	// Closed is the end of each such connection, before it is Patience old.
	Closed
)

// Patience is how long the proxy may take to close the connection of an abuser.
const Patience = 5 * time.Second

// Attack is what one connection does, and how many of them there are.
type Attack struct {
	Name        string
	Connections int // at the same time, one if 0; one that is closed is opened again
	Want        Want
	Settings    []http2.Setting // of ours
	TLS         bool            // the proxy speaks TLS; the attack does not
	Raw         bool            // nothing of HTTP/2 is said but what the functions say
	Mute        bool            // what is read is neither acknowledged nor given credit for, so that nothing comes between what is sent
	Unread      bool            // nothing is read
	Open        func(*Conn) error
	// Request is for each request that comes to an attacking backend. nil answers OK.
	Request func(*Conn, *http2.MetaHeadersFrame) error
	// Step is repeated until the connection ends, at a backend from the first request on. nil waits.
	Step  func(*Conn) error
	Pause time.Duration // between steps; 0 is none, and many steps are sent together
	Lasts time.Duration // at least, for what is noticed by its age
	// Apart: all but one of the calls that a backend attacks have another connection than the victim's, whose client would decode their answers one after
	// the other, and that time is not the proxy's.
	Apart bool
	// Slow is the victim's p99 up to which it is no finding; 0 is smallP99. It is larger where each step is a call that the limits allow, so that the
	// attack is load: the proxy, the backend and the attacker share the processors with the victim.
	Slow time.Duration
}

// halfP99 is half of the p99 that the acceptance table allows a victim, 250 ms.
const halfP99 = 125 * time.Millisecond

// errAgain ends a connection from our side, to begin a new one.
var errAgain = errors.New("the attack begins again")

// Result is what an attack has done, and what was done about it.
type Result struct {
	Frames      int64
	Connections int // that were opened
	Closed      int // by the proxy
	// ClosedAfter is the age at which the proxy closed the connection that it tolerated for longest; Oldest the age of the oldest that it left open.
	ClosedAfter, Oldest time.Duration
	Saw                 map[string]int // what came back
	Failed              string         // why connections could not be opened, if so
}

// Refusals are the answers that said no.
func (r Result) Refusals() int {
	n := r.Closed
	for what, times := range r.Saw {
		if what != "grpc 0" && what != "request" {
			n += times
		}
	}
	return n
}

// run is an attack under way.
type run struct {
	Attack
	mu     sync.Mutex
	result Result
	open   map[*Conn]bool
}

// Front attacks the address as clients do until ctx ends. With Want Closed it goes on for up to Patience, for as long as nothing was closed.
func (a Attack) Front(ctx context.Context, addr string) Result {
	r, ctx, stop := a.start(ctx)
	defer stop()
	var all sync.WaitGroup
	for range max(a.Connections, 1) {
		all.Go(func() {
			for ctx.Err() == nil {
				c, err := Dial(ctx, addr)
				if err != nil {
					if ctx.Err() == nil {
						r.failed(err)
						sleep(ctx, 50*time.Millisecond) // the proxy may refuse for a while: that is its right
					}
					continue
				}
				r.play(ctx, c)
			}
		})
	}
	all.Wait()
	return r.result
}

// Back attacks each client that connects to the listener, until ctx ends.
func (a Attack) Back(ctx context.Context, l net.Listener) Result {
	r, ctx, stop := a.start(ctx)
	defer stop()
	var all sync.WaitGroup
	all.Go(func() { <-ctx.Done(); _ = l.Close() })
	for {
		c, err := l.Accept()
		if err != nil {
			break
		}
		all.Go(func() {
			conn := newConn(c, true)
			conn.request = a.Request
			if conn.request == nil {
				conn.request = answerOK
			}
			conn.data = (*Conn).credit
			r.play(ctx, conn)
		})
	}
	all.Wait()
	return r.result
}

// start makes a context that ends with ctx, or later if the proxy has not yet done what it must.
func (a Attack) start(ctx context.Context) (*run, context.Context, context.CancelFunc) {
	r := &run{Attack: a, open: map[*Conn]bool{}}
	r.result.Saw = map[string]int{}
	longer, stop := context.WithCancel(context.WithoutCancel(ctx))
	started := time.Now()
	go func() {
		defer stop()
		select {
		case <-ctx.Done():
		case <-longer.Done():
		}
		for a.Want == Closed && time.Since(started) < Patience+time.Second/2 && r.tolerated() {
			sleep(longer, 50*time.Millisecond)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for c := range r.open {
			r.result.Oldest = max(r.result.Oldest, time.Since(c.opened))
		}
	}()
	return r, longer, stop
}

// tolerated says that connections are open that were opened first.
func (r *run) tolerated() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open) > 0 && r.result.Closed < len(r.open)
}

func (r *run) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Failed = err.Error()
}

// play does what the attack does with a connection, until it ends.
func (r *run) play(ctx context.Context, c *Conn) {
	r.mu.Lock()
	r.result.Connections++
	r.open[c] = true
	r.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	c.mute = r.Mute
	err := r.script(ctx, c)
	ours := ctx.Err() != nil || errors.Is(err, errAgain)
	if errors.Is(err, errAgain) {
		_ = c.Flush()
	} else { // a write has failed, perhaps: there may still be something to read that says why
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		select {
		case <-c.ended:
		case <-time.After(100 * time.Millisecond):
		}
	}
	_ = c.Close()
	<-c.ended
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, c)
	r.result.Frames += c.out.frames.Load()
	for what, n := range c.saw {
		r.result.Saw[what] += n
	}
	if !ours {
		r.result.Closed++
		r.result.ClosedAfter = max(r.result.ClosedAfter, time.Since(c.opened))
	}
}

// script returns nil if the peer has ended the connection.
func (r *run) script(ctx context.Context, c *Conn) error {
	if !r.Raw {
		if err := c.Hello(r.Settings...); err != nil {
			close(c.ended)
			return err
		}
	}
	switch {
	case r.Unread:
		go c.watch()
	case r.Raw:
		go func() { _, _ = io.Copy(io.Discard, c.Conn); close(c.ended) }()
	default:
		go c.Read()
	}
	if r.Open != nil {
		if err := r.Open(c); err != nil {
			return err
		}
	}
	if c.server && r.Request != nil {
		select {
		case <-c.begun:
		case <-c.ended:
			return nil
		}
	}
	for {
		if r.Step == nil || r.Pause > 0 {
			if err := c.Flush(); err != nil {
				return err
			}
			pause := r.Pause
			if r.Step == nil {
				pause = time.Hour
			}
			select {
			case <-c.ended:
				return nil
			case <-time.After(pause):
			case <-ctx.Done():
				return nil
			}
		} else {
			select {
			case <-c.ended:
				return nil
			default:
			}
		}
		if r.Step != nil {
			if err := r.Step(c); err != nil {
				return err
			}
		}
	}
}

// watch notices that the peer has closed the connection without reading from it.
func (c *Conn) watch() {
	defer close(c.ended)
	raw, err := c.Conn.(*net.TCPConn).SyscallConn()
	for err == nil {
		var gone bool
		err = raw.Control(func(fd uintptr) {
			events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			_, _ = unix.Poll(events, 0)
			gone = events[0].Revents != 0
		})
		if gone {
			return
		}
		time.Sleep(20 * time.Millisecond) // there is nothing that would wake us: what is unread stays readable
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
