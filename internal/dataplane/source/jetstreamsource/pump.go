package jetstreamsource

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/flow"
)

// fetchWait is how long one fetch waits for messages; meanwhile the server gives a sign every heartbeat. Two missed ones end the fetch, as when the
// server was restarted and has forgotten it.
const (
	fetchWait = 5 * time.Second
	heartbeat = time.Second
)

// pump fetches as many messages as there is room for.
func (r *Reader) pump() {
	pause := 50 * time.Millisecond
	for r.ctx.Err() == nil {
		room := cap(r.ready) - len(r.ready)
		if room == 0 {
			select {
			case <-r.taken:
			case <-r.ctx.Done():
			}
			continue
		}
		err := r.fetch(room)
		if err == nil || r.ctx.Err() != nil {
			pause = 50 * time.Millisecond
			continue
		}
		if again, why := r.reopen(); again {
			continue
		} else if why != nil {
			err = why
		}
		select { // only the last one counts
		case <-r.trouble:
		default:
		}
		r.trouble <- fmt.Errorf("read stream %s with consumer %s: %w", r.cfg.Stream, r.cfg.Consumer, err)
		select {
		case <-time.After(pause):
		case <-r.ctx.Done():
		}
		pause = min(2*pause, 2*time.Second)
	}
}

func (r *Reader) fetch(n int) error {
	ctx, cancel := context.WithTimeout(r.ctx, fetchWait)
	defer cancel()
	life := r.current()
	batch, err := life.consumer.Fetch(n, jetstream.FetchContext(ctx), jetstream.FetchHeartbeat(heartbeat))
	if err != nil {
		return err
	}
	for in := range batch.Messages() {
		if err := r.arrived(life, in); err != nil {
			return err
		}
	}
	if err := batch.Error(); err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, jetstream.ErrNoMessages) {
		return err
	}
	return nil
}

// arrived puts a message into ready, which has room for it, unless it is already in flight.
func (r *Reader) arrived(life *opened, in jetstream.Msg) error {
	about, err := in.Metadata()
	if err != nil {
		return err
	}
	at := place{seq: about.Sequence.Stream, stored: about.Timestamp.UnixNano()}
	r.mu.Lock()
	if it := r.inHand[at]; it != nil {
		it.in = in // the server did not hear from us for long; it is answered by the newer delivery
		r.mu.Unlock()
		return nil
	}
	it := &item{place: at, life: life, in: in, message: flow.Message{
		ID: r.id(life, at), Value: in.Data(), EventTime: at.stored, Ingested: time.Now().UnixNano(),
	}}
	for name, values := range in.Headers() {
		for _, value := range values {
			it.message.Headers = flow.AppendHeader(it.message.Headers, name, value)
		}
	}
	r.inHand[at] = it
	r.mu.Unlock()
	r.ready <- it
	return nil
}

// id names a message within a life of the stream. In a life that a store from before creation times knows by its plain name, ids are those of then.
func (r *Reader) id(life *opened, at place) string {
	id := r.cfg.Stream + ":" + strconv.FormatUint(at.seq, 10)
	if life.partition == r.cfg.Stream {
		return id
	}
	return id + ":" + strconv.FormatInt(at.stored, 36)
}

// keepAlive tells the server what is in flight, three times in the time after which it would give it to another.
func (r *Reader) keepAlive() {
	r.mu.Lock()
	every := r.ackWait / 3
	r.mu.Unlock()
	tick := time.NewTicker(max(every, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
		r.mu.Lock()
		for _, it := range r.inHand {
			_ = it.in.InProgress() // if it does not get there, the message comes again, and is recognised
		}
		r.mu.Unlock()
	}
}
