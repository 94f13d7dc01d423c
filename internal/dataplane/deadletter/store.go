package deadletter

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/flow"
)

// Letter is a message that was dead-lettered.
type Letter struct {
	// Name is how a person names it: the vertex and a hash of the message's id.
	Name     string    `json:"name"`
	Pipeline string    `json:"pipeline"`
	Vertex   string    `json:"vertex"`
	ID       string    `json:"id"`
	Buried   time.Time `json:"buried"`
	Failure  Failure   `json:"failure"`
	// Message is the original, with its headers, keys and metadata.
	Message flow.Message `json:"-"`
}

// Store keeps the letters of a pipeline in a JetStream stream: one subject a letter, so that putting a message again changes nothing, however much later.
// Payloads that are too large for a message lie in an object store beside it.
type Store struct {
	js  jetstream.JetStream
	cfg Config
}

// Config says where the letters of a pipeline are.
type Config struct {
	// Stream is the name of the stream: see package naming.
	Stream string
	// Pipeline is the name of the Pipeline or MonoVertex, as letters have it.
	Pipeline string
	// Tag says whose the stream is. It is written into the metadata of a stream that is created.
	Tag naming.Tag
	// Replicas of a stream and an object store that are created. Default 1.
	Replicas int
	// Logger gets a warning about letters that cannot be stored. Default: no logger.
	Logger *slog.Logger
}

// requestTimeout bounds what Open asks of the broker. The caller retries.
const requestTimeout = 5 * time.Second

// Open opens the store of a pipeline, and creates it if it does not exist.
func Open(ctx context.Context, js jetstream.JetStream, cfg Config) (*Store, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := js.Stream(ctx, cfg.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		_, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: cfg.Stream, Subjects: []string{cfg.Stream + ".>"}, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true,
			MaxMsgsPerSubject: 1, Replicas: max(1, cfg.Replicas), Storage: jetstream.FileStorage, AllowDirect: true, Metadata: cfg.Tag.In(nil),
		})
	}
	if err != nil {
		return nil, fmt.Errorf("dead letters %s: %w", cfg.Stream, err)
	}
	return Attach(js, cfg), nil
}

// Attach takes a store that exists as it is.
func Attach(js jetstream.JetStream, cfg Config) *Store {
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	return &Store{js: js, cfg: cfg}
}

const (
	headerLetter = "Levada-Letter"
	headerObject = "Levada-Payload-Object"
	maxEvidence  = 16 << 10
)

func name(vertex, id string) string {
	sum := sha256.Sum256([]byte(id))
	return vertex + "." + hex.EncodeToString(sum[:10])
}

// Put stores a message of a vertex with its evidence, durably. Putting it again changes nothing.
func (s *Store) Put(ctx context.Context, vertex string, m *flow.Message, f *Failure) error {
	evidence := *f
	evidence.Stack, evidence.Output, evidence.Error = bounded(evidence.Stack), bounded(evidence.Output), bounded(evidence.Error)
	l := Letter{Name: name(vertex, m.ID), Pipeline: s.cfg.Pipeline, Vertex: vertex, ID: m.ID, Buried: time.Now().UTC(), Failure: evidence}
	head, err := json.Marshal(l)
	if err != nil {
		return err
	}
	kept := *m
	kept.Tags = nil
	data, err := flow.Encode(&flow.Block{Lane: vertex, Lo: m.Pos, Hi: m.Pos, Messages: []flow.Message{kept}}, flow.None)
	if err != nil {
		return err
	}
	// Header values are text of one line: JSON has no raw newlines.
	msg := &nats.Msg{Subject: s.cfg.Stream + "." + l.Name, Data: data, Header: nats.Header{headerLetter: {string(head)}}}
	if int64(len(data)+len(head)) > s.js.Conn().MaxPayload()-4<<10 {
		// The caller tries again.
		object, cancel := context.WithTimeout(ctx, time.Minute)
		err := s.putObject(object, l.Name, data)
		cancel()
		if err != nil {
			return fmt.Errorf("payload of the dead letter: %w", err)
		}
		msg.Data = nil
		msg.Header.Set(headerObject, l.Name)
	}
	began, told := time.Now(), time.Time{}
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := s.store(ctx, msg)
		if err == nil {
			return nil
		}
		// The message is not acknowledged until its letter is stored, so this is waited for.
		if time.Since(began) > 2*time.Second && time.Since(told) > 30*time.Second {
			told = time.Now()
			s.cfg.Logger.Error("dead letter not stored, retrying; its message is not acknowledged until then", "vertex", vertex, "message", m.ID, "stream", s.cfg.Stream, "error", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// store stores a letter if it is not there.
func (s *Store) store(ctx context.Context, msg *nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := s.js.PublishMsg(ctx, msg)
	var api *jetstream.APIError
	if err == nil || !errors.As(err, &api) || api.ErrorCode != codeFull {
		return err
	}
	// The same code says that the subject has its one message, and that the stream is full. Only the stream knows which.
	stream, failed := s.js.Stream(ctx, s.cfg.Stream)
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

func bounded(s string) string {
	if len(s) > maxEvidence {
		s = "..." + s[len(s)-maxEvidence:]
	}
	return strings.ToValidUTF8(s, "?")
}

func (s *Store) objectStore(ctx context.Context) (jetstream.ObjectStore, error) {
	bucket := naming.Payloads(s.cfg.Stream)
	o, err := s.js.ObjectStore(ctx, bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		tag := s.cfg.Tag
		tag.Role = naming.RolePayloads
		o, err = s.js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: bucket, Storage: jetstream.FileStorage, Replicas: max(1, s.cfg.Replicas), Metadata: tag.In(nil)})
	}
	return o, err
}

func (s *Store) putObject(ctx context.Context, name string, data []byte) error {
	o, err := s.objectStore(ctx)
	if err != nil {
		return err
	}
	_, err = o.PutBytes(ctx, name, data)
	return err
}

// ErrNotFound means there is no such letter.
var ErrNotFound = errors.New("no such dead letter")

// Get returns a letter whole. The error is ErrNotFound if there is none of that name.
func (s *Store) Get(ctx context.Context, name string) (*Letter, error) {
	stream, err := s.js.Stream(ctx, s.cfg.Stream)
	if err != nil {
		return nil, err
	}
	msg, err := stream.GetLastMsgForSubject(ctx, s.cfg.Stream+"."+name)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return nil, err
	}
	var l Letter
	if err := json.Unmarshal([]byte(msg.Header.Get(headerLetter)), &l); err != nil {
		return nil, fmt.Errorf("dead letter %s: %w", name, err)
	}
	data := msg.Data
	if object := msg.Header.Get(headerObject); object != "" {
		o, err := s.objectStore(ctx)
		if err != nil {
			return nil, err
		}
		if data, err = o.GetBytes(ctx, object); err != nil {
			return nil, fmt.Errorf("payload of dead letter %s: %w", name, err)
		}
	}
	b, err := flow.Decode(data)
	if err != nil || len(b.Messages) != 1 {
		return nil, fmt.Errorf("dead letter %s: %w", name, errors.Join(err, flow.ErrCorrupt))
	}
	l.Message = b.Messages[0]
	return &l, nil
}

// Drop removes a letter for good.
func (s *Store) Drop(ctx context.Context, name string) error {
	stream, err := s.js.Stream(ctx, s.cfg.Stream)
	if err != nil {
		return err
	}
	msg, err := stream.GetLastMsgForSubject(ctx, s.cfg.Stream+"."+name)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return err
	}
	if object := msg.Header.Get(headerObject); object != "" {
		if o, err := s.objectStore(ctx); err == nil {
			_ = o.Delete(ctx, object)
		}
	}
	return stream.DeleteMsg(ctx, msg.Sequence)
}

// Of is the store for one vertex; it implements forward.DeadLetters.
func (s *Store) Of(vertex string) VertexStore { return VertexStore{s, vertex} }

// VertexStore puts messages of one vertex aside.
type VertexStore struct {
	store  *Store
	vertex string
}

// Put implements forward.DeadLetters.
func (v VertexStore) Put(ctx context.Context, m *flow.Message, f *Failure) error {
	return v.store.Put(ctx, v.vertex, m, f)
}
