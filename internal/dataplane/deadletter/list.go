package deadletter

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Page returns at most limit letters of a vertex, or of all for "", oldest first and without their payloads. It begins behind the letter at the cursor after, 0
// for the oldest, and returns the cursor of the last one, or 0 if there are no more. A cursor stays valid when letters are added and dropped.
func (s *Store) Page(ctx context.Context, vertex string, after uint64, limit int) (letters []Letter, next uint64, err error) {
	filter := s.cfg.Stream + ".>"
	if vertex != "" {
		filter = s.cfg.Stream + "." + vertex + ".*"
	}
	// Ephemeral and without acknowledgements: reading leaves nothing behind at the broker.
	consumer, err := s.js.CreateConsumer(ctx, s.cfg.Stream, jetstream.ConsumerConfig{
		FilterSubject: filter, HeadersOnly: true, AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: after + 1,
	})
	if err != nil {
		return nil, 0, fmt.Errorf("dead letters %s: %w", s.cfg.Stream, err)
	}
	defer func() { _ = s.js.DeleteConsumer(context.WithoutCancel(ctx), s.cfg.Stream, consumer.CachedInfo().Name) }()
	waiting := consumer.CachedInfo().NumPending
	want := int(min(uint64(limit), waiting))
	for len(letters) < want {
		batch, err := consumer.Fetch(min(want-len(letters), 500), jetstream.FetchContext(ctx))
		if err != nil {
			return letters, next, err
		}
		got := 0
		for msg := range batch.Messages() {
			got++
			var l Letter
			if err := json.Unmarshal([]byte(msg.Headers().Get(headerLetter)), &l); err != nil {
				return letters, next, fmt.Errorf("dead letter %s: %w", msg.Subject(), err)
			}
			meta, err := msg.Metadata()
			if err != nil {
				return letters, next, err
			}
			letters, next = append(letters, l), meta.Sequence.Stream
		}
		if err := batch.Error(); err != nil {
			return letters, next, err
		}
		if got == 0 {
			break // dropped meanwhile
		}
	}
	if uint64(len(letters)) >= waiting {
		next = 0
	}
	return letters, next, nil
}
