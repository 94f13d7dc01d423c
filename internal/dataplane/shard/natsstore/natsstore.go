// Package natsstore keeps sessions, leases and saved states of shards in a key-value bucket of a NATS JetStream broker.
//
// The bucket's client is used for the watch only. Its Update carries no TTL, so that a record which it renews would live without end, and its Get does not tell the
// revision of a record that was removed. So records are written as messages to the key's subject, with the expected revision and the TTL in their headers.
//
// A revision is a sequence of the bucket's stream, and so ascends over all keys. Expiry is decided by the clock of the server that leads the stream, with a
// resolution of a second; it leaves a marker, which the watch delivers.
package natsstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/shard"
)

// markers is how long the broker keeps the marker of a record that was removed or has expired.
const markers = time.Minute

// Store implements shard.Store.
type Store struct {
	js     jetstream.JetStream
	kv     jetstream.KeyValue
	stream jetstream.Stream
	bucket string
	expire bool // the bucket has a TTL for single records
}

// Open returns the store in a bucket that exists, and switches the TTL of single records on in it. A server that has none (before 2.11) is fine: members then remove
// the sessions of others that were not renewed.
func Open(ctx context.Context, js jetstream.JetStream, bucket string) (*Store, error) {
	kv, err := js.KeyValue(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("bucket %s for the leases of shards: %w", bucket, err)
	}
	stream, err := js.Stream(ctx, "KV_"+bucket)
	if err != nil {
		return nil, fmt.Errorf("stream of bucket %s for the leases of shards: %w", bucket, err)
	}
	s := &Store{js, kv, stream, bucket, true}
	cfg := stream.CachedInfo().Config
	if cfg.AllowMsgTTL && cfg.SubjectDeleteMarkerTTL > 0 {
		return s, nil
	}
	cfg.AllowMsgTTL, cfg.SubjectDeleteMarkerTTL = true, markers
	updated, err := js.UpdateStream(ctx, cfg)
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.Code < 500 {
		s.expire = false
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("TTL of records in bucket %s: %w", bucket, err)
	}
	s.stream, s.expire = updated, updated.CachedInfo().Config.AllowMsgTTL
	return s, nil
}

func (s *Store) subject(key string) string { return "$KV." + s.bucket + "." + key }

// Write implements shard.Store.
func (s *Store) Write(ctx context.Context, key string, value []byte, expect uint64, ttl time.Duration) (uint64, error) {
	return s.publish(ctx, &nats.Msg{Subject: s.subject(key), Data: value}, key, expect, ttl)
}

const operation = "KV-Operation"

// Remove implements shard.Store.
func (s *Store) Remove(ctx context.Context, key string, expect uint64) (uint64, error) {
	msg := &nats.Msg{Subject: s.subject(key), Header: nats.Header{operation: {"DEL"}}}
	return s.publish(ctx, msg, key, expect, markers)
}

// isConflict reports whether an error is the broker's answer to a message that expects another revision. A stream with replicas has a code of its own for that while another
// message to the subject is on its way to the replicas.
func isConflict(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

func (s *Store) publish(ctx context.Context, msg *nats.Msg, key string, expect uint64, ttl time.Duration) (uint64, error) {
	revision, err := s.try(ctx, msg, expect, ttl)
	if !errors.Is(err, shard.ErrConflict) || expect != 0 {
		return revision, err
	}
	// For the broker the marker of a removed record is a revision like any other.
	last, err := s.Read(ctx, key)
	if err != nil {
		return 0, err
	}
	if last.Present || last.Revision == 0 {
		return 0, shard.ErrConflict
	}
	return s.try(ctx, msg, last.Revision, ttl)
}

func (s *Store) try(ctx context.Context, msg *nats.Msg, expect uint64, ttl time.Duration) (uint64, error) {
	options := []jetstream.PublishOpt{jetstream.WithExpectLastSequencePerSubject(expect), jetstream.WithRetryAttempts(0)}
	if ttl > 0 && s.expire {
		// Never early: whole seconds, rounded up.
		options = append(options, jetstream.WithMsgTTL((ttl + time.Second - 1).Truncate(time.Second)))
	}
	ack, err := s.js.PublishMsg(ctx, msg, options...)
	if isConflict(err) {
		return 0, shard.ErrConflict
	}
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// Read implements shard.Store.
func (s *Store) Read(ctx context.Context, key string) (shard.Entry, error) {
	msg, err := s.stream.GetLastMsgForSubject(ctx, s.subject(key))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return shard.Entry{Key: key}, nil
	}
	if err != nil {
		return shard.Entry{}, err
	}
	if msg.Header.Get(operation) != "" || msg.Header.Get("Nats-Marker-Reason") != "" {
		return shard.Entry{Key: key, Revision: msg.Sequence}, nil
	}
	return shard.Entry{Key: key, Value: msg.Data, Present: true, Revision: msg.Sequence}, nil
}

// Watch implements shard.Store.
func (s *Store) Watch(ctx context.Context, prefix string, deliver func(shard.Entry), synced func()) error {
	w, err := s.kv.Watch(ctx, prefix+">")
	if err != nil {
		return err
	}
	defer func() { _ = w.Stop() }() // the watch has ended
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case e, open := <-w.Updates():
			switch {
			case !open:
				return errors.New("the watch has ended")
			case e == nil:
				synced()
			case e.Operation() == jetstream.KeyValuePut:
				deliver(shard.Entry{Key: e.Key(), Value: e.Value(), Present: true, Revision: e.Revision()})
			default:
				deliver(shard.Entry{Key: e.Key(), Revision: e.Revision()})
			}
		}
	}
}
