package shard

import (
	"cmp"
	"errors"
	"time"
)

// Kind says what a key is for.
type Kind uint8

// The kinds of keys.
const (
	// Session is the key of a member: as long as it holds a record of an incarnation, the leases of that incarnation are valid.
	Session Kind = iota
	// Lease is the key of a shard.
	Lease
)

// Key is a key in the store: of a member's session, or of a shard's lease.
type Key struct {
	Kind Kind
	Name string
}

// Record is the value of a key.
type Record struct {
	// Owner is the member that a lease belongs to; empty if the shard was released. Not used in a session.
	Owner string
	// Incarnation of the member. A session is of one incarnation, a lease is valid while that session lives.
	Incarnation string
	// Epoch of a lease grows by at least one with each claim, and is kept when the lease is released: no two claims of a shard have the same.
	Epoch uint64
	// Renewal counts the writes of a session, so that a member recognizes its own write whose answer was lost, and knows when it sent it.
	Renewal uint64
	// Draining in a session says that its member takes no shards any more.
	Draining bool
}

// Event is something that happened to a member.
type Event interface{ event() }

// The events.
type (
	// Tick says that the time which Member.Next returned has come. A Tick too early or too many does no harm.
	Tick struct{}
	// Observed is an entry that the watch delivered. Present is false for a record that was removed or has expired.
	Observed struct {
		Key      Key
		Record   Record
		Present  bool
		Revision uint64
	}
	// Synced says that the watch has delivered all keys that existed when it began.
	Synced struct{}
	// Written answers a Write or a Remove that was applied.
	Written struct {
		ID       uint64
		Revision uint64
	}
	// Refused answers a Write or a Remove: the key has another revision.
	Refused struct{ ID uint64 }
	// Unknown answers any request that failed or timed out. A Write may have been applied, and may still be.
	Unknown struct{ ID uint64 }
	// Got answers a Read. Revision is 0 if the store knows nothing of the key.
	Got struct {
		ID       uint64
		Record   Record
		Present  bool
		Revision uint64
	}
	// Stopped says that nothing of this start of the shard runs any more in this process.
	Stopped struct {
		Shard string
		Epoch uint64
	}
	// Fenced says that the saved state of the shard was written under an epoch that is not below that of this start.
	Fenced struct {
		Shard       string
		Epoch, Seen uint64
	}
	// Drain says that the process ends: finish, release, leave.
	Drain struct{}
)

// Action is what a member wants done.
type Action interface{ action() }

// The actions.
type (
	// Write is a compare-and-set: it stores the record if the key's revision is Expect; 0 if there is no record. TTL is how long the record may live; 0 without end.
	Write struct {
		ID     uint64
		Key    Key
		Record Record
		Expect uint64
		TTL    time.Duration
	}
	// Remove is a compare-and-set as Write is, which leaves no record. Its revision is above all earlier ones, also if there was no record.
	Remove struct {
		ID     uint64
		Key    Key
		Expect uint64
	}
	// Read asks for a key. The answer may be an older state.
	Read struct {
		ID  uint64
		Key Key
	}
	// Rewatch ends the watch and begins another one.
	Rewatch struct{}
	// Start begins to read a shard. There is one Start for each shard and epoch, and none before the Stopped of the last one.
	Start struct {
		Shard string
		Epoch uint64
	}
	// Stop ends a start. Stopped answers it. With Finish, what is in flight is finished and saved, until Deadline at most; a second Stop without Finish may
	// follow. Without, everything is given up at once, and by Deadline nothing of it runs.
	Stop struct {
		Shard    string
		Epoch    uint64
		Finish   bool
		Deadline time.Duration
		Reason   Reason
	}
	// Leave says that the member has no session and no shards, and does nothing more. Err is nil after Drain.
	Leave struct{ Err error }
)

// Reason says why a shard is stopped.
type Reason string

// The reasons.
const (
	ReasonShare      Reason = "the shard belongs to another member"
	ReasonDrain      Reason = "the process drains"
	ReasonDeadline   Reason = "the work in flight was not finished in time"
	ReasonExpiring   Reason = "the session could not be renewed and may expire"
	ReasonLost       Reason = "the session has expired"
	ReasonTaken      Reason = "another member has the lease"
	ReasonSuperseded Reason = "another process has the same name"
)

// ErrSuperseded ends a member whose name another, later process has taken.
var ErrSuperseded = errors.New("another process has joined under the same name; names of members must be unique")

func (Tick) event()     {}
func (Observed) event() {}
func (Synced) event()   {}
func (Written) event()  {}
func (Refused) event()  {}
func (Unknown) event()  {}
func (Got) event()      {}
func (Stopped) event()  {}
func (Fenced) event()   {}
func (Drain) event()    {}

func (Write) action()   {}
func (Remove) action()  {}
func (Read) action()    {}
func (Rewatch) action() {}
func (Start) action()   {}
func (Stop) action()    {}
func (Leave) action()   {}

// Timing has the times of the protocol. A zero value is the default, which follows from TTL. All members of a group must have the same TTL.
type Timing struct {
	// TTL is how long a session lives without a renewal. A shard whose process was killed is without an owner for up to TTL and some latency. Default 5 s.
	TTL time.Duration
	// Renew is the time between renewals. Default TTL/5.
	Renew time.Duration
	// Guard is how much earlier than TTL after it sent a renewal the member itself counts its session as expired. It covers what the clocks of the process and of
	// the store's servers may differ in speed over a TTL, and what two servers' clocks may be apart when the leader changes. Default TTL/10.
	Guard time.Duration
	// Abandon is how long it takes to give up what a shard does. Default TTL/20.
	Abandon time.Duration
	// Expiry is how long the others wait for a renewal before they remove a session, in case that the store did not. It must exceed TTL. Default TTL*6/5.
	Expiry time.Duration
	// Settle is how long a new member waits until it gets shards that another one holds, so that members which join together cause one move. Default TTL/5.
	Settle time.Duration
	// Gather is how long a member that has just joined waits until it takes shards without an owner, so that the first of several that start or come back
	// together does not take all. It does not wait for shards that were its own. Default TTL/25; three times Settle/2 when it comes back after it lost its session.
	Gather time.Duration
	// Retry is the pause after a request that was refused or failed. Default TTL/25.
	Retry time.Duration
	// Finish is how long a shard that moves may take to finish what is in flight. Default 30 s.
	Finish time.Duration
}

func (t Timing) withDefaults() Timing {
	t.TTL = cmp.Or(t.TTL, 5*time.Second)
	t.Renew = cmp.Or(t.Renew, t.TTL/5)
	t.Guard = cmp.Or(t.Guard, t.TTL/10)
	t.Abandon = cmp.Or(t.Abandon, t.TTL/20)
	t.Expiry = cmp.Or(t.Expiry, t.TTL*6/5)
	t.Settle = cmp.Or(t.Settle, t.TTL/5)
	t.Gather = cmp.Or(t.Gather, t.TTL/25)
	t.Retry = cmp.Or(t.Retry, t.TTL/25)
	t.Finish = cmp.Or(t.Finish, 30*time.Second)
	return t
}
