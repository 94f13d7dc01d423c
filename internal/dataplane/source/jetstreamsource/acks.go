package jetstreamsource

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// acks sends acknowledgements which the server confirms, many at a time: one after the other would cost a round trip for each message.
type acks struct {
	conn  *nats.Conn
	inbox string
	sub   *nats.Subscription

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*confirmation // by the last element of the subject that the server answers to
}

// confirmation is what one call waits for.
type confirmation struct {
	left map[uint64]string // the acknowledgements that are not confirmed
	done chan struct{}
}

// Errors and times of acknowledging.
const (
	again  = 2 * time.Second  // after which what is not confirmed is sent again
	giveUp = 30 * time.Second // after which the caller shall know
)

var errUnconfirmed = errors.New("the server does not confirm")

func newAcks(conn *nats.Conn) (*acks, error) {
	a := &acks{conn: conn, inbox: conn.NewInbox(), waiting: map[uint64]*confirmation{}}
	var err error
	a.sub, err = conn.Subscribe(a.inbox+".*", a.confirmed)
	return a, err
}

func (a *acks) confirmed(m *nats.Msg) {
	token, err := strconv.ParseUint(strings.TrimPrefix(m.Subject, a.inbox+"."), 10, 64)
	if err != nil || len(m.Header) > 0 { // a header says that nobody is there: the acknowledgement is sent again
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.waiting[token]
	if c == nil {
		return
	}
	delete(a.waiting, token)
	delete(c.left, token)
	if len(c.left) == 0 {
		close(c.done)
	}
}

// confirm acknowledges to the subjects and waits until the server has confirmed all, or gone says that nobody is left to do so.
func (a *acks) confirm(ctx context.Context, subjects []string, gone func(context.Context) bool) error {
	if len(subjects) == 0 {
		return nil
	}
	c := &confirmation{left: make(map[uint64]string, len(subjects)), done: make(chan struct{})}
	a.mu.Lock()
	for _, s := range subjects {
		a.next++
		c.left[a.next] = s
		a.waiting[a.next] = c
	}
	a.mu.Unlock()
	defer a.forget(c)
	ctx, cancel := context.WithTimeoutCause(ctx, giveUp, errUnconfirmed)
	defer cancel()
	tick := time.NewTicker(again)
	defer tick.Stop()
	for {
		if err := a.send(c); err != nil {
			return err
		}
		select {
		case <-c.done:
			return nil
		case <-tick.C:
			if gone(ctx) {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (a *acks) send(c *confirmation) error {
	a.mu.Lock()
	left := make(map[uint64]string, len(c.left))
	for token, subject := range c.left {
		left[token] = subject
	}
	a.mu.Unlock()
	for token, subject := range left {
		if err := a.conn.PublishRequest(subject, a.inbox+"."+strconv.FormatUint(token, 10), ack); err != nil {
			return err
		}
	}
	return nil
}

var ack = []byte("+ACK")

func (a *acks) forget(c *confirmation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for token := range c.left {
		delete(a.waiting, token)
	}
}

func (a *acks) close() error {
	if err := a.sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		return err
	}
	return nil
}
