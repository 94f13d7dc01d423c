package deadletter

import "context"

// Storage keeps the letters of one pipeline at a buffer service. What every service would repeat (names, formats, evidence, waiting for a store that is full or does
// not answer) is in Store. All methods may be called concurrently. They have deadlines of their own, and retry nothing.
type Storage interface {
	// Name is how logs and errors name it.
	Name() string
	// Add stores a letter durably, with a payload of any size. A letter of that name that is there already is left as it is, however long ago it was stored.
	Add(ctx context.Context, l Stored) error
	// Get returns a letter whole. The error is ErrNotFound if there is none of that name.
	Get(ctx context.Context, name string) (Stored, error)
	// Remove removes a letter for good, with its payload. The error is ErrNotFound if there is none of that name.
	Remove(ctx context.Context, name string) error
	// Page returns at most limit letters of a vertex, or of all for "", in the order in which they were stored and without payloads. It begins behind the letter at
	// the cursor after, 0 for the oldest. next is the cursor of the last one, or 0 if there are no more. A cursor stays valid when letters are added and removed. It
	// leaves nothing behind at the service.
	Page(ctx context.Context, vertex string, after uint64, limit int) (letters []Stored, next uint64, err error)
}

// Stored is a letter as a Storage keeps it.
type Stored struct {
	// Name is unique among the letters of a pipeline: the vertex, a dot, and letters and digits.
	Name string
	// Head is all of the letter but the message: text of one line.
	Head []byte
	// Payload is the message.
	Payload []byte
}
