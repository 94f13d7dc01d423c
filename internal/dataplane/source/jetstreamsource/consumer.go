package jetstreamsource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// opened is one life of the stream, with the consumer there. A stream that was deleted and created again counts from 1 again: its messages are others,
// and so are its consumers, whatever they are called.
type opened struct {
	consumer jetstream.Consumer
	created  time.Time
	// partition names this life of the stream in lanes and message ids.
	partition string
}

// open finds or creates the consumer.
func (cfg *Config) open(ctx context.Context, js jetstream.JetStream) (*opened, error) {
	policy, err := deliverPolicy(cfg.DeliverPolicy)
	if err != nil {
		return nil, err
	}
	stream, err := js.Stream(ctx, cfg.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("stream: there is no stream %q; create it first, for instance: nats stream add %s", cfg.Stream, cfg.Stream)
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", cfg.Stream, err)
	}
	o := &opened{created: stream.CachedInfo().Created}
	if o.partition, err = cfg.partition(ctx, o.created); err != nil {
		return nil, err
	}
	o.consumer, err = stream.Consumer(ctx, cfg.Consumer)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		if o.consumer, err = cfg.adopt(ctx, stream); err != nil {
			return nil, err
		}
		if o.consumer == nil {
			o.consumer, err = cfg.create(ctx, stream, policy)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("consumer %s of stream %s: %w", cfg.Consumer, cfg.Stream, err)
	}
	have := o.consumer.CachedInfo().Config
	untagged, err := cfg.Tag.Check(cfg.Stream+", consumer "+have.Durable, have.Metadata)
	if err != nil {
		return nil, err
	}
	if err := fits(have, *cfg); err != nil {
		return nil, err
	}
	if untagged {
		have.Metadata = cfg.Tag.In(have.Metadata)
		if o.consumer, err = stream.UpdateConsumer(ctx, have); err != nil {
			return nil, fmt.Errorf("consumer %s of stream %s: %w", have.Durable, cfg.Stream, err)
		}
	}
	return o, nil
}

func (cfg *Config) create(ctx context.Context, stream jetstream.Stream, policy jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	policy.Durable, policy.AckPolicy, policy.FilterSubjects = cfg.Consumer, jetstream.AckExplicitPolicy, cfg.FilterSubjects
	policy.AckWait, policy.MaxAckPending, policy.MaxDeliver = cfg.AckWait, cfg.MaxAckPending, -1
	policy.Metadata = cfg.Tag.In(nil)
	if policy.DeliverPolicy == jetstream.DeliverLastPerSubjectPolicy && len(cfg.FilterSubjects) == 0 {
		policy.FilterSubjects = []string{everything} // the server wants one with this policy
	}
	consumer, err := stream.CreateConsumer(ctx, policy)
	if errors.Is(err, jetstream.ErrConsumerExists) { // another pod was faster
		consumer, err = stream.Consumer(ctx, cfg.Consumer)
	}
	return consumer, err
}

// adopt returns the consumer of the old name if it exists and is not known to be of another owner. Its name reads the same for several owners: the first
// one that adopts it has it.
func (cfg *Config) adopt(ctx context.Context, stream jetstream.Stream) (jetstream.Consumer, error) {
	if cfg.OldConsumer == "" {
		return nil, nil
	}
	consumer, err := stream.Consumer(ctx, cfg.OldConsumer)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("consumer %s of stream %s: %w", cfg.OldConsumer, cfg.Stream, err)
	}
	if _, err := cfg.Tag.Check(cfg.Stream, consumer.CachedInfo().Config.Metadata); err != nil {
		return nil, nil // it is somebody else's
	}
	return consumer, nil
}

// oldLife is what is remembered of the life of the stream whose messages are known by the plain name of the stream.
type oldLife struct {
	Created int64 `json:"created"`
}

// partition names a life of the stream. For stores from before lives had names, the first one that is seen keeps the plain name: its messages are
// known by that.
func (cfg *Config) partition(ctx context.Context, created time.Time) (string, error) {
	name := cfg.Stream + "." + strconv.FormatInt(created.UnixNano(), 36)
	if cfg.OldNames == nil {
		return name, nil
	}
	key := "stream " + cfg.Stream
	saved, err := cfg.OldNames.Load(ctx, key)
	if err != nil {
		return "", fmt.Errorf("load the creation time of stream %s: %w", cfg.Stream, err)
	}
	life := oldLife{created.UnixNano()}
	if saved != nil {
		if err := json.Unmarshal(saved, &life); err != nil {
			return "", fmt.Errorf("saved creation time of stream %s: %q: %w", cfg.Stream, saved, err)
		}
	} else {
		b, err := json.Marshal(life)
		if err == nil {
			err = cfg.OldNames.Save(ctx, key, b)
		}
		if err != nil {
			return "", fmt.Errorf("save the creation time of stream %s: %w", cfg.Stream, err)
		}
	}
	if life.Created == created.UnixNano() {
		return cfg.Stream, nil
	}
	return name, nil
}

// otherLife reports whether the stream that was opened is not there any more: it was deleted, and perhaps created again.
func (r *Reader) otherLife(ctx context.Context, o *opened) (other, exists bool) {
	stream, err := r.js.Stream(ctx, r.cfg.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return true, false
	}
	return err == nil && !stream.CachedInfo().Created.Equal(o.created), err == nil
}

// reopen goes on with the stream that has taken the place of the one that was opened. It returns false if it is the same, or none is there.
func (r *Reader) reopen() (bool, error) {
	ctx, cancel := context.WithTimeout(r.ctx, fetchWait)
	defer cancel()
	before := r.current()
	other, exists := r.otherLife(ctx, before)
	if !other {
		return false, nil
	}
	if !exists {
		return false, fmt.Errorf("stream %s was deleted, waiting until it is created again", r.cfg.Stream)
	}
	// What is in flight is of the old stream, and can be acknowledged to nobody: the sequences mean other messages now. It goes before the new
	// consumer exists, so that no acknowledgement of an old message reaches that.
	r.mu.Lock()
	r.inHand = map[place]*item{}
	r.life = &opened{created: before.created, consumer: before.consumer, partition: before.partition} // nobody's
	r.mu.Unlock()
	after, err := r.cfg.open(ctx, r.js)
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	r.life, r.ackWait = after, after.consumer.CachedInfo().Config.AckWait
	r.mu.Unlock()
	r.cfg.Logger.Warn("stream was deleted and created again, reading it from its start", "stream", r.cfg.Stream, "created", after.created, "before", before.created)
	return true, nil
}

func (r *Reader) current() *opened {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.life
}
