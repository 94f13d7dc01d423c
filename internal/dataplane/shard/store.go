package shard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Store keeps sessions, leases and saved states. Its methods may be called concurrently, and return when ctx ends at the latest.
//
// Writes of a key are ordered, and a compare-and-set sees all writes before it. Reads and watches may lag, but a watch delivers entries in the order of their
// revisions. Revisions ascend over all keys of a group: what is in a state with revision n was written before what has revision n+1.
type Store interface {
	// Write stores value if the revision of the key is expect; with expect 0, if the key has no record. After ttl the record is gone unless it is written again; 0 is
	// without end. A store that does not know a TTL, or expires late, is fine; it must not expire early. Returns ErrConflict if the revision is another one. After any
	// other error it is unknown whether the value was or will be stored.
	Write(ctx context.Context, key string, value []byte, expect uint64, ttl time.Duration) (revision uint64, err error)
	// Remove leaves no record, under the same conditions; with expect 0 also if there was none. Its revision is above all earlier ones.
	Remove(ctx context.Context, key string, expect uint64) (revision uint64, err error)
	// Read returns the entry of a key, which may be an older one. Revision is 0 if nothing is known of the key.
	Read(ctx context.Context, key string) (Entry, error)
	// Watch delivers the newest entry of each key below prefix, calls synced, and goes on with what is written, removed and expires. It may leave out entries that
	// were replaced by newer ones. It returns only with an error: when ctx ends, or when the watch is interrupted.
	Watch(ctx context.Context, prefix string, deliver func(Entry), synced func()) error
}

// Entry is what a store has under a key. Present is false if the record was removed or has expired.
type Entry struct {
	Key      string
	Value    []byte
	Present  bool
	Revision uint64
}

// ErrConflict means that a key has another revision than a compare-and-set expected. It was not applied.
var ErrConflict = errors.New("the key has another revision")

// Words in keys.
const (
	sessionWord = "member."
	leaseWord   = "lease."
)

// String is the key below the prefix of its group.
func (k Key) String() string {
	if k.Kind == Session {
		return sessionWord + k.Name
	}
	return leaseWord + k.Name
}

// parseKey is the opposite of Key.String; false if it is another kind of key.
func parseKey(s string) (Key, bool) {
	if name, ok := strings.CutPrefix(s, sessionWord); ok {
		return Key{Session, name}, true
	}
	if name, ok := strings.CutPrefix(s, leaseWord); ok {
		return Key{Lease, name}, true
	}
	return Key{}, false
}

// stored is how a record is written.
type stored struct {
	Owner       string `json:"owner,omitempty"`
	Incarnation string `json:"incarnation,omitempty"`
	Epoch       uint64 `json:"epoch,omitempty"`
	Renewal     uint64 `json:"renewal,omitempty"`
	Draining    bool   `json:"draining,omitempty"`
}

func encode(r Record) []byte {
	value, err := json.Marshal(stored(r))
	if err != nil {
		panic(err) // strings, numbers and a bool
	}
	return value
}

// Holder says whose a lease is, from the stored records of the lease and of its owner's session (Key); false if nobody owns the shard, or its owner has ended.
func Holder(lease []byte, session func(owner string) ([]byte, error)) (owner string, epoch uint64, ok bool, err error) {
	if len(lease) == 0 {
		return "", 0, false, nil
	}
	l, err := decode("of a lease", lease)
	if err != nil || l.Owner == "" {
		return "", l.Epoch, false, err
	}
	value, err := session(l.Owner)
	if err != nil || len(value) == 0 {
		return "", l.Epoch, false, err
	}
	s, err := decode("of a session", value)
	return l.Owner, l.Epoch, err == nil && s.Incarnation == l.Incarnation, err
}

func decode(key string, value []byte) (Record, error) {
	var r stored
	if err := json.Unmarshal(value, &r); err != nil {
		return Record{}, fmt.Errorf("record %s in the store is damaged (%w); remove it if no process of this vertex runs", key, err)
	}
	return Record(r), nil
}
