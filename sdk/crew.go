package sdk

import (
	"errors"
	"io"
	"sync"
	"time"
)

const (
	// watchEvery is how soon a call that is stuck is noticed.
	watchEvery = time.Millisecond
	// quietTicks without a message, and the watch sleeps until there is one.
	quietTicks = 16
	// slowCall is well above what handing a message to another goroutine costs.
	slowCall = 20 * time.Microsecond
	// So many samples in a row change our mind.
	slowSamples, quickSamples = 4, 64
	sampleEvery               = 8
)

// crew answers the messages of one stream, each independently, in any order. As long as calls are quick one goroutine does
// everything, reading included, so that no message changes hands. A call that takes longer loses the right to
// read to another goroutine; while calls keep being slow, each has a goroutine of its own, as far as there are seats.
type crew struct {
	server *server
	recv   func() (frame, error)
	answer func(frame, seat) error

	mu sync.Mutex
	// reading: somebody has the right to read. It stays true after the end, so that nobody takes it again.
	reading bool
	ended   bool
	err     error
	workers int
	done    chan error

	// slow: calls are slow, so the right to read is passed on before each.
	slow   bool
	streak int // samples in a row that speak against slow

	// started counts messages; watched is what the watch saw last.
	started, watched uint64
	watching         bool
	quiet            int
	watch            *time.Timer
}

// run answers messages until the stream ends. If it ends in order, all its messages have been answered.
func (c *crew) run(first seat) error {
	c.done = make(chan error, 1)
	c.watch = time.AfterFunc(time.Hour, c.look)
	defer c.watch.Stop()
	c.mu.Lock()
	c.spawn(first)
	c.mu.Unlock()
	return <-c.done
}

// spawn adds a worker. The caller holds mu.
func (c *crew) spawn(s seat) {
	c.workers++
	c.server.work.Go(func() {
		defer c.leave()
		defer c.server.seats.leave(s)
		c.serve(s)
	})
}

// relieve adds a worker if there is a seat for it and nobody reads. The caller holds mu.
func (c *crew) relieve() {
	if c.reading {
		return
	}
	if s, ok := c.server.seats.try(); ok {
		c.spawn(s)
	}
}

func (c *crew) serve(s seat) {
	for n := 0; c.mayRead(); n++ {
		message, err := c.recv()
		if err != nil {
			c.end(err)
			return
		}
		slow := c.begin()
		timed := slow || n%sampleEvery == 0
		var begun time.Time
		if timed {
			begun = time.Now()
		}
		if err := c.answer(message, s); err != nil {
			c.end(err)
			return
		}
		if timed {
			c.sample(time.Since(begun))
		}
	}
}

func (c *crew) mayRead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reading {
		return false
	}
	c.reading = true
	return true
}

// begin notes that the reader has a message, and no longer reads.
func (c *crew) begin() (slow bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.started++
	if !c.ended {
		c.reading = false
	}
	if !c.watching {
		c.watching, c.quiet = true, 0
		c.watch.Reset(watchEvery)
	}
	if c.slow {
		c.relieve()
	}
	return c.slow
}

func (c *crew) sample(took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if (took >= slowCall) == c.slow {
		c.streak = 0
		return
	}
	c.streak++
	if c.streak >= slowSamples && !c.slow || c.streak >= quickSamples && c.slow {
		c.slow, c.streak = !c.slow, 0
	}
}

// look is the watch: it finds a call that keeps the only worker from reading.
func (c *crew) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	idle := c.started == c.watched
	c.watched = c.started
	switch {
	case !idle:
		c.quiet = 0
	case !c.reading:
		c.slow, c.streak = true, 0
		c.relieve()
	default:
		c.quiet++
	}
	if c.quiet == quietTicks {
		c.watching = false
		return
	}
	c.watch.Reset(watchEvery)
}

// end keeps everybody from reading again. Any error but EOF ends the stream without waiting for calls under way.
func (c *crew) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended && c.err != nil {
		return
	}
	c.ended, c.reading = true, true
	if !errors.Is(err, io.EOF) {
		c.err = err
		c.done <- err
	}
}

func (c *crew) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.workers--
	if c.workers == 0 && c.err == nil {
		c.done <- nil
	}
}
