package proxy

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/proxy/frame"
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
			return fmt.Errorf("listen for callers again: %w", err)
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
		f.sayGoodbye()
	}
	if !p.endStreams(d.Period, run) {
		return false
	}
	for _, f := range p.allFronts() {
		f.mu.Lock()
		f.closeAfterOut(f.last, frame.NoError, "drained")
		f.rouse()
		f.mu.Unlock()
	}
	if !p.waitForFronts(2*time.Second, run) {
		return false
	}
	p.log.Info("drained")
	return true
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
