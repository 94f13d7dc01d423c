package streamsink

import (
	"github.com/levada-io/levada/internal/dataplane/sink/render"
	"github.com/levada-io/levada/internal/flow"
)

// Payload says what of a message a record holds. The names are those of the manifest.
type Payload string

// The payloads.
const (
	// Value: the payload alone.
	Value Payload = "value"
	// Message: an object of JSON with id, keys, eventTime (RFC 3339), headers, and value, or valueBase64 for what is not UTF-8.
	Message Payload = "message"
)

func (p Payload) append(b []byte, m *flow.Message) []byte {
	if p == Value {
		return append(b, m.Value...)
	}
	b = render.JSON.Append(b, m)
	return b[:len(b)-1] // without its line end
}
