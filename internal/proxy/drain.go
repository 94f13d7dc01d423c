package proxy

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/proxy/balance"
)

// drains is the drain that is under way or over, if there is one.
type drains struct {
	// mu is held while a drain begins, and all through Undrain, so that neither meets the other half done.
	mu      sync.Mutex
	current *drainRun // nil: the proxy serves
	ending  bool      // Run is about to return: this drain cannot be called off
}

type drainRun struct {
	off      chan struct{} // closed by Undrain
	done     chan struct{} // closed when the drain is over, or was called off
	complete bool          // written before done is closed
}

// ErrEnding is what Undrain returns once the process is about to end.
var ErrEnding = errors.New("the process is ending, so its drain cannot be called off")

// Drain ends all streams, spread over the configured time, and then the connections; new ones are not taken. It returns when that is done, also to those who
// call it a second time, and reports whether it is: Undrain may have called it off.
func (p *Proxy) Drain() bool { return p.BeginDrain()() }

// BeginDrain makes the proxy one that drains before it returns. The rest is done by the function that it returns, which must be called, and is as Drain.
func (p *Proxy) BeginDrain() (finish func() bool) {
	d := &p.drains
	d.mu.Lock()
	defer d.mu.Unlock()
	run := d.current
	if run != nil {
		return func() bool {
			<-run.done
			return run.complete
		}
	}
	run = &drainRun{off: make(chan struct{}), done: make(chan struct{})}
	d.current = run
	p.draining.Store(true)
	return func() bool {
		run.complete = p.drain(run)
		p.drained.Store(run.complete)
		close(run.done)
		return run.complete
	}
}

// Undrain calls a drain off, or makes a proxy that has drained serve again: its listeners are opened, and it is ready. Streams that the drain has ended stay
// so. It does nothing to a proxy that does not drain.
func (p *Proxy) Undrain() error {
	d := &p.drains
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return ErrEnding
	}
	if run := d.current; run != nil {
		// drains.mu is held while this waits, so no other drain begins meanwhile. The function that BeginDrain returned does not take it.
		close(run.off)
		<-run.done
		d.current = nil
	}
	if !p.draining.Load() {
		return nil
	}
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		if err := p.reopen(); err != nil {
			return err // it stays as not ready as it was, and a drain or an undrain begins where this one ended
		}
	}
	p.drained.Store(false)
	p.draining.Store(false)
	p.log.Info("drain called off, serving again")
	return nil
}

// reopen listens again after a drain has closed the listeners. Either all of them are open when it returns, or none.
func (p *Proxy) reopen() error {
	p.reloading.Lock()
	defer p.reloading.Unlock()
	p.mu.Lock()
	all := slices.Clone(p.listeners)
	p.mu.Unlock()
	for _, l := range all {
		if err := l.listen(); err != nil {
			p.closeListeners()
			return fmt.Errorf("listen for clients again: %w", err)
		}
	}
	p.mu.Lock()
	p.closed, p.leaving = false, false
	p.mu.Unlock()
	for _, l := range all {
		l.start()
	}
	return nil
}

// end drains for good, and closes the connections to endpoints.
func (p *Proxy) end() {
	p.drains.mu.Lock()
	p.drains.ending = true
	p.drains.mu.Unlock()
	p.Drain()
	for _, x := range p.state.Load().clusters {
		x.update(nil)
	}
}

// Ending reports whether the process is about to end: a drain cannot be called off any more.
func (p *Proxy) Ending() bool {
	p.drains.mu.Lock()
	defer p.drains.mu.Unlock()
	return p.drains.ending
}

// drain reports whether it came to its end.
func (p *Proxy) drain(run *drainRun) bool {
	d := p.state.Load().config.Drain
	if d.Notice > 0 {
		p.log.Info("draining soon", "notice", d.Notice)
		if !run.wait(d.Notice) {
			return false
		}
	}
	p.handOver()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.log.Info("draining", "period", d.Period, "streams", p.Open())
	for _, f := range p.allFronts() {
		f.sendGoAway()
	}
	if !endStreams(d.Period, p.allFronts, "the proxy is draining: open the stream again", run.wait) {
		return false
	}
	for _, f := range p.allFronts() {
		f.mu.Lock()
		f.closeAfterOut(f.last, frame.NoError, "drained")
		f.wakeWriterLocked()
		f.mu.Unlock()
	}
	if !p.waitForFronts(2*time.Second, run) {
		return false
	}
	p.log.Info("drained")
	return true
}

// endStreams ends the streams of some connections one by one over a period. Calls that are short, by what is known of their methods, may end by themselves until then. Wait
// reports after a time whether to go on. The result is false if that was not so before the end.
func endStreams(period time.Duration, fronts func() []*front, why string, wait func(time.Duration) bool) bool {
	const step = 20 * time.Millisecond
	begin := time.Now()
	due := 0.0 // streams that should have been ended by now
	for {
		var long []ref
		left, passed := 0, time.Since(begin)
		for _, f := range fronts() {
			f.mu.Lock()
			for _, s := range f.streams {
				if left++; !s.outEnd && (s.kind != balance.Unary || passed >= period) {
					long = append(long, ref{s, s.id})
				}
			}
			f.mu.Unlock()
		}
		if left == 0 || passed > period+time.Second {
			return true
		}
		// As many now as it takes to be done with all in the rest of the time.
		now := len(long)
		if rest := period - passed; rest > step {
			due += float64(now) * float64(step) / float64(rest)
			now = min(int(due), now)
			due -= float64(now)
		}
		for _, r := range long[:now] {
			var w wakeups
			r.s.front.mu.Lock()
			if r.current() {
				e := unavailable(reasonDraining, "%s", why)
				e.retry = 0
				r.s.end(e, &w)
			}
			r.s.front.mu.Unlock()
			w.flush()
		}
		if !wait(step) {
			return false
		}
	}
}

// wait reports whether the drain still goes on after a time.
func (r *drainRun) wait(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.off:
		return false
	case <-timer.C:
		return true
	}
}

// Drained reports whether the proxy has drained, and neither ended nor was undrained since.
func (p *Proxy) Drained() bool { return p.drained.Load() }
