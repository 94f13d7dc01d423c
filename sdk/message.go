package sdk

import (
	"slices"
	"strings"
	"time"
)

// Tags with a meaning of their own.
const (
	// TagDrop drops the result it stands on.
	TagDrop = `U+005C__DROP__`
	// TagNack gives the input message back to the buffer, to be delivered again. Use NackResult.
	TagNack = `U+005C__NACK__`
	// TagFail makes the platform retry the message by the retry strategy of its vertex, where it has one.
	TagFail = `U+005C__FAIL__`
)

// Message is an input of a function. It is valid until the call that received it returns; see Clone.
type Message struct {
	// ID correlates the message with its results. It says nothing else.
	ID    string
	Keys  []string
	Value []byte

	EventTime time.Time
	// Watermark promises that (almost) no message older than it will follow.
	Watermark time.Time

	// Headers and metadata stay encoded in raw until they are asked for: most functions never do.
	raw  []byte
	wire layout
	set  *extras
}

// extras are headers and metadata that were set rather than received.
type extras struct {
	headers  map[string]string
	metadata Metadata
}

// Metadata travels beside a message: groups of keys and values.
type Metadata struct {
	// PreviousVertex is the vertex that wrote the message.
	PreviousVertex string
	// System groups are written by the platform.
	System map[string]map[string][]byte
	// User groups are written by functions. A result's user groups replace those of its input.
	User map[string]map[string][]byte
}

// Headers decodes the headers of the message, once for each call. The map belongs to the caller.
func (m Message) Headers() map[string]string {
	if m.set != nil {
		return m.set.headers
	}
	if !m.wire.hasHeaders {
		return nil
	}
	return decodeHeaders(m.raw, m.wire.headers)
}

// Metadata decodes the metadata of the message, once for each call. The maps belong to the caller.
func (m Message) Metadata() Metadata {
	if m.set != nil {
		return m.set.metadata
	}
	if !m.wire.hasMetadata {
		return Metadata{}
	}
	return decodeMetadata(m.raw, m.wire.metadata)
}

// WithExtras returns the message with these headers and metadata. It is meant for tests of functions.
func (m Message) WithExtras(headers map[string]string, metadata Metadata) Message {
	m.set = &extras{headers: headers, metadata: metadata}
	return m
}

// Clone returns a copy of the message that may be kept without keeping the frame that carried it.
func (m Message) Clone() Message {
	m.ID = strings.Clone(m.ID)
	m.Keys = slices.Clone(m.Keys)
	for i, key := range m.Keys {
		m.Keys[i] = strings.Clone(key)
	}
	m.Value = slices.Clone(m.Value)
	m.raw = slices.Clone(m.raw)
	return m
}

// Result is an output of a map. No results at all: the message is filtered out.
type Result struct {
	Keys  []string
	Value []byte
	// Tags choose the edges the result takes, as the edges' conditions say.
	Tags []string
	// Metadata becomes the user metadata of the result; nil clears it. It does not carry over by itself:
	// to keep it, return message.Metadata().User.
	Metadata map[string]map[string][]byte
	// Nack goes with TagNack.
	Nack *NackOptions
}

// NackOptions says how a message that is given back should be delivered again. The zero value says nothing.
type NackOptions struct {
	Reason string
	// MaxDeliveries is a wish that the platform may not be able to grant. 0: none.
	MaxDeliveries uint32
	// Delay before the next delivery, with a precision of a millisecond.
	Delay time.Duration
	// Extra is for sources that understand it.
	Extra map[string]string
}

// NackResult is the result that gives its input message back to the buffer.
func NackResult(options NackOptions) Result {
	return Result{Tags: []string{TagNack}, Nack: &options}
}

// DropResult is the result that drops its input message. In a map it is the same as returning no results.
func DropResult() Result { return Result{Tags: []string{TagDrop}} }
