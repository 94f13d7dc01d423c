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

// Store keeps the letters of a pipeline. A letter is named by its vertex and its message's id, so that putting a message again changes nothing, however much later.
//
// Its methods may be called concurrently. Put waits for a store that does not answer; the others return its errors.
type Store struct {
	storage  Storage
	pipeline string       // what letters say where they are from
	log      *slog.Logger // never nil
}

// New returns the letters of a Pipeline or MonoVertex of that name. The logger gets lines about letters that cannot be stored; nil for none.
func New(storage Storage, pipeline string, log *slog.Logger) *Store {
	return &Store{storage, pipeline, cmp.Or(log, slog.New(slog.DiscardHandler))}
}

// maxEvidence is how many bytes of a stack, an output or an error are kept, from the end.
const maxEvidence = 16 << 10

// name is the name of a letter: safe in a subject, a key and a URL, whatever the id is. 80 bits of hash keep two messages of a vertex apart.
func name(vertex, id string) string {
	sum := sha256.Sum256([]byte(id))
	return vertex + "." + hex.EncodeToString(sum[:10])
}

// Put stores a message of a vertex with its evidence, durably. Putting it again changes nothing. It returns when the letter is stored or ctx ends.
func (s *Store) Put(ctx context.Context, vertex string, m *flow.Message, f *Failure) error {
	l, err := s.encode(vertex, m, f)
	if err != nil {
		return err
	}
	began, told := time.Now(), time.Time{}
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := s.storage.Add(ctx, l)
		if err == nil {
			return nil
		}
		// The message is not acknowledged until its letter is stored, so this is waited for.
		if time.Since(began) > 2*time.Second && time.Since(told) > 30*time.Second {
			told = time.Now()
			s.log.Error("dead letter not stored, retrying; its message is not acknowledged until then", "vertex", vertex, "message", m.ID, "stream", s.storage.Name(), "error", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// encode makes a letter of a message. The head has all but the message, so that pages need no payloads.
func (s *Store) encode(vertex string, m *flow.Message, f *Failure) (Stored, error) {
	evidence := *f
	evidence.Stack, evidence.Output, evidence.Error = bounded(evidence.Stack), bounded(evidence.Output), bounded(evidence.Error)
	l := Letter{Name: name(vertex, m.ID), Pipeline: s.pipeline, Vertex: vertex, ID: m.ID, Buried: time.Now().UTC(), Failure: evidence}
	head, err := json.Marshal(l) // which has no raw newlines
	if err != nil {
		return Stored{}, err
	}
	// A block has no tags: they are of results, and are decided again when the message is replayed.
	payload, err := flow.Encode(&flow.Block{Lane: vertex, Lo: m.Pos, Hi: m.Pos, Messages: []flow.Message{*m}}, flow.None)
	return Stored{l.Name, head, payload}, err
}

// bounded is the end of a text, as valid UTF-8: what a function wrote may be cut, or be no text.
func bounded(s string) string {
	if len(s) > maxEvidence {
		s = "..." + s[len(s)-maxEvidence:]
	}
	return strings.ToValidUTF8(s, "?")
}

// ErrNotFound means there is no such letter.
var ErrNotFound = errors.New("no such dead letter")

// Get returns a letter whole. The error is ErrNotFound if there is none of that name.
func (s *Store) Get(ctx context.Context, name string) (*Letter, error) {
	stored, err := s.storage.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	var l Letter
	if err := json.Unmarshal(stored.Head, &l); err != nil {
		return nil, fmt.Errorf("dead letter %s: %w", name, err)
	}
	b, err := flow.Decode(stored.Payload)
	if err != nil || len(b.Messages) != 1 {
		return nil, fmt.Errorf("dead letter %s: %w", name, errors.Join(err, flow.ErrCorrupt))
	}
	l.Message = b.Messages[0]
	return &l, nil
}

// Page returns at most limit letters without their payloads, as Storage.Page does.
func (s *Store) Page(ctx context.Context, vertex string, after uint64, limit int) (letters []Letter, next uint64, err error) {
	stored, next, err := s.storage.Page(ctx, vertex, after, limit)
	for i := range stored {
		var l Letter
		if err := json.Unmarshal(stored[i].Head, &l); err != nil {
			return letters, next, fmt.Errorf("dead letter %s: %w", stored[i].Name, err)
		}
		letters = append(letters, l)
	}
	return letters, next, err
}

// Drop removes a letter for good.
func (s *Store) Drop(ctx context.Context, name string) error { return s.storage.Remove(ctx, name) }

// Of is the store for one vertex; it implements forward.DeadLetters.
func (s *Store) Of(vertex string) VertexStore { return VertexStore{s, vertex} }

// VertexStore takes the dead letters of one vertex.
type VertexStore struct {
	store  *Store
	vertex string
}

// Put implements forward.DeadLetters.
func (v VertexStore) Put(ctx context.Context, m *flow.Message, f *Failure) error {
	return v.store.Put(ctx, v.vertex, m, f)
}
