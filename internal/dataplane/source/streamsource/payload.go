package streamsource

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/stream"
)

// Payload says what a record's value holds. The names are those of the manifest.
type Payload string

// The payloads.
const (
	// Value: the value is the message's payload, and the record's key its only key; a key that is not UTF-8 is written in hex.
	Value Payload = "value"
	// Message: the value is a message as a stream sink with the same setting writes it, with its keys, headers and event time.
	Message Payload = "message"
)

// envelope is a message as JSON. It is what package render makes.
type envelope struct {
	Keys        []string          `json:"keys"`
	EventTime   time.Time         `json:"eventTime"`
	Headers     map[string]string `json:"headers"`
	Value       *string           `json:"value"`
	ValueBase64 []byte            `json:"valueBase64"`
}

// message makes a message of a record. With an error, the message is what is there of it.
func (p Payload) message(r *stream.Record) (m flow.Message, err error) {
	key := string(r.Key)
	if !utf8.ValidString(key) {
		key = hex.EncodeToString(r.Key)
	}
	m.Keys = []string{key}
	if r.Bad != "" {
		return m, fmt.Errorf("the producer could not make it: %s", r.Bad)
	}
	m.Value = r.Value
	if p != Message {
		return m, nil
	}
	var e envelope
	if err := json.Unmarshal(r.Value, &e); err != nil {
		return m, fmt.Errorf("it is not a message as JSON, which payload: message asks for: %w", err)
	}
	if e.Value == nil && e.ValueBase64 == nil {
		return m, errors.New("it is not a message as JSON, which payload: message asks for: there is neither value nor valueBase64")
	}
	m.Keys, m.Value = e.Keys, e.ValueBase64
	if e.Value != nil {
		m.Value = []byte(*e.Value)
	}
	if !e.EventTime.IsZero() {
		m.EventTime = e.EventTime.UnixNano()
	}
	for _, name := range slices.Sorted(maps.Keys(e.Headers)) {
		m.Headers = flow.AppendHeader(m.Headers, name, e.Headers[name])
	}
	return m, nil
}
