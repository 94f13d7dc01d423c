package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// letters keeps the dead letters of a pipeline in a stream: one subject a letter, and one message a subject. Payloads that are too large for a message lie in an
// object store beside it. It implements deadletter.Storage.
type letters struct {
	js jetstream.JetStream
	// stream is its name: see package naming.
	stream string
	// tag says whose the stream is. It is written into the metadata of a stream that is created.
	tag naming.Tag
	// replicas of a stream and an object store that are created; 0 to ask choice.
	replicas int
	choice   *jetstreambuffer.Choice
}

const (
	headerLetter = "Levada-Letter"
	headerObject = "Levada-Payload-Object"
	// requestTimeout bounds a request to the broker. The caller retries.
	requestTimeout = 5 * time.Second
	// objectTimeout bounds a payload in the object store.
	objectTimeout = time.Minute
)

// OpenLetters opens the stream of the dead letters of a tag, and creates it if it does not exist, with so many replicas.
func OpenLetters(ctx context.Context, js jetstream.JetStream, stream string, tag naming.Tag, replicas int) (deadletter.Storage, error) {
	return openLetters(ctx, &letters{js: js, stream: stream, tag: tag, replicas: replicas})
}

func openLetters(ctx context.Context, l *letters) (deadletter.Storage, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := l.js.Stream(ctx, l.stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		err = l.choice.Create(ctx, l.replicas, func(replicas int) error {
			_, err := l.js.CreateStream(ctx, jetstream.StreamConfig{
				Name: l.stream, Subjects: []string{l.stream + ".>"}, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true,
				MaxMsgsPerSubject: 1, Replicas: replicas, Storage: jetstream.FileStorage, AllowDirect: true, Metadata: l.tag.In(nil),
			})
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("dead letters %s: %w", l.stream, err)
	}
	return l, nil
}

// Name implements deadletter.Storage.
func (l *letters) Name() string { return l.stream }

// Add implements deadletter.Storage.
func (l *letters) Add(ctx context.Context, s deadletter.Stored) error {
	msg := &nats.Msg{Subject: l.stream + "." + s.Name, Data: s.Payload, Header: nats.Header{headerLetter: {string(s.Head)}}}
	if len(s.Payload)+len(s.Head) > maxValue(l.js) {
		if err := l.putObject(ctx, s.Name, s.Payload); err != nil {
			return fmt.Errorf("payload of the dead letter: %w", err)
		}
		msg.Data = nil
		msg.Header.Set(headerObject, s.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := l.js.PublishMsg(ctx, msg)
	var api *jetstream.APIError
	if err == nil || !errors.As(err, &api) || api.ErrorCode != codeFull {
		return err
	}
	// The same code says that the subject has its one message, and that the stream is full. Only the stream knows which.
	stream, failed := l.js.Stream(ctx, l.stream)
	if failed != nil {
		return failed
	}
	_, failed = stream.GetLastMsgForSubject(ctx, msg.Subject)
	if errors.Is(failed, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("the stream is full: raise its limits or remove letters: %w", err)
	}
	return failed
}

const codeFull = 10077

func (l *letters) objectStore(ctx context.Context) (jetstream.ObjectStore, error) {
	bucket := naming.Payloads(l.stream)
	o, err := l.js.ObjectStore(ctx, bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		tag := l.tag
		tag.Role = naming.RolePayloads
		err = l.choice.Create(ctx, l.replicas, func(replicas int) (err error) {
			o, err = l.js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: bucket, Storage: jetstream.FileStorage, Replicas: replicas, Metadata: tag.In(nil)})
			return err
		})
	}
	return o, err
}

// putObject stores a payload, unless an attempt before has.
func (l *letters) putObject(ctx context.Context, name string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, objectTimeout)
	defer cancel()
	o, err := l.objectStore(ctx)
	if err != nil {
		return err
	}
	// The broker knows of an object once all of it is stored.
	if info, err := o.GetInfo(ctx, name); err == nil && info.Size == uint64(len(data)) {
		return nil
	}
	_, err = o.PutBytes(ctx, name, data)
	return err
}

func (l *letters) last(ctx context.Context, name string) (jetstream.Stream, *jetstream.RawStreamMsg, error) {
	stream, err := l.js.Stream(ctx, l.stream)
	if err != nil {
		return nil, nil, err
	}
	msg, err := stream.GetLastMsgForSubject(ctx, l.stream+"."+name)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		err = fmt.Errorf("%w: %s", deadletter.ErrNotFound, name)
	}
	return stream, msg, err
}

// Get implements deadletter.Storage.
func (l *letters) Get(ctx context.Context, name string) (s deadletter.Stored, err error) {
	_, msg, err := l.last(ctx, name)
	if err != nil {
		return s, err
	}
	s = deadletter.Stored{Name: name, Head: []byte(msg.Header.Get(headerLetter)), Payload: msg.Data}
	object := msg.Header.Get(headerObject)
	if object == "" {
		return s, nil
	}
	o, err := l.objectStore(ctx)
	if err != nil {
		return s, err
	}
	if s.Payload, err = o.GetBytes(ctx, object); err != nil {
		return s, fmt.Errorf("payload of dead letter %s: %w", name, err)
	}
	return s, nil
}

// Remove implements deadletter.Storage.
func (l *letters) Remove(ctx context.Context, name string) error {
	stream, msg, err := l.last(ctx, name)
	if err != nil {
		return err
	}
	if object := msg.Header.Get(headerObject); object != "" {
		if o, err := l.objectStore(ctx); err == nil {
			_ = o.Delete(ctx, object)
		}
	}
	return stream.DeleteMsg(ctx, msg.Sequence)
}

// Page implements deadletter.Storage.
func (l *letters) Page(ctx context.Context, vertex string, after uint64, limit int) (page []deadletter.Stored, next uint64, err error) {
	filter := l.stream + ".>"
	if vertex != "" {
		filter = l.stream + "." + vertex + ".*"
	}
	// Ephemeral and without acknowledgements: reading leaves nothing behind at the broker.
	consumer, err := l.js.CreateConsumer(ctx, l.stream, jetstream.ConsumerConfig{
		FilterSubject: filter, HeadersOnly: true, AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: after + 1,
	})
	if err != nil {
		return nil, 0, fmt.Errorf("dead letters %s: %w", l.stream, err)
	}
	defer func() { _ = l.js.DeleteConsumer(context.WithoutCancel(ctx), l.stream, consumer.CachedInfo().Name) }()
	waiting := consumer.CachedInfo().NumPending
	want := int(min(uint64(limit), waiting))
	for len(page) < want {
		batch, err := consumer.Fetch(min(want-len(page), 500), jetstream.FetchContext(ctx))
		if err != nil {
			return page, next, err
		}
		got := 0
		for msg := range batch.Messages() {
			got++
			meta, err := msg.Metadata()
			if err != nil {
				return page, next, err
			}
			page = append(page, deadletter.Stored{Name: strings.TrimPrefix(msg.Subject(), l.stream+"."), Head: []byte(msg.Headers().Get(headerLetter))})
			next = meta.Sequence.Stream
		}
		if err := batch.Error(); err != nil {
			return page, next, err
		}
		if got == 0 {
			break // dropped meanwhile
		}
	}
	if uint64(len(page)) >= waiting {
		next = 0
	}
	return page, next, nil
}
