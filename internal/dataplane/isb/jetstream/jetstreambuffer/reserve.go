package jetstreambuffer

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// To make room in a store that is full, blocks are removed, and before that the state is saved, which needs room. So the state bucket keeps some in reserve.

const (
	reserveKey   = "reserve"
	reserveBytes = 256 << 10
	reserveEvery = 5 * time.Second // how often it is filled again
)

// fullCodes are the errors of a store without room: of the stream's own limits, and of the account's or the server's.
var fullCodes = []jetstream.ErrorCode{codeFull, 10002, 10023, 10028, 10047}

func isFull(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && slices.Contains(fullCodes, api.ErrorCode)
}

// putState stores a value in the state bucket.
func (d *driver) putState(ctx context.Context, key string, value []byte) error {
	return d.withReserve(ctx, func() error {
		_, err := d.cfg.State.Put(ctx, key, value)
		return err
	})
}

// withReserve writes to the state bucket, with the room in reserve if there is no other.
func (d *driver) withReserve(ctx context.Context, write func() error) error {
	err := write()
	if isFull(err) && d.releaseReserve(ctx) == nil {
		err = write()
	}
	if err == nil {
		d.fillReserve(ctx)
	}
	return err
}

// releaseReserve removes the reserve: the message itself, since a marker that says that a key was deleted needs room as well.
func (d *driver) releaseReserve(ctx context.Context) error {
	entry, err := d.cfg.State.Get(ctx, reserveKey)
	if err != nil {
		return err
	}
	stream, err := d.js.Stream(ctx, "KV_"+d.cfg.State.Bucket())
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.reserved, d.reserveFilled = time.Now(), false // it is filled again once there is room
	d.mu.Unlock()
	d.cfg.Logger.Warn("store is full, state saved with the room in reserve", "stream", d.cfg.Stream)
	return stream.DeleteMsg(ctx, entry.Revision())
}

// fillReserve puts the reserve back, if it is not there. Without room for it there is none.
func (d *driver) fillReserve(ctx context.Context) {
	d.mu.Lock()
	due := !d.reserveFilled && time.Since(d.reserved) > reserveEvery
	if due {
		d.reserved = time.Now()
	}
	d.mu.Unlock()
	if !due {
		return
	}
	_, err := d.cfg.State.Get(ctx, reserveKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		room := make([]byte, min(reserveBytes, int(d.js.Conn().MaxPayload())/2))
		_, _ = rand.Read(room) // never fails; a store that compresses would make nothing of zeros
		_, err = d.cfg.State.Create(ctx, reserveKey, room)
	}
	d.mu.Lock()
	d.reserveFilled = err == nil
	d.mu.Unlock()
}
