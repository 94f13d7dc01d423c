package function

import (
	"github.com/levada-io/levada/internal/dataplane/function/client"
	"github.com/levada-io/levada/internal/dataplane/function/process"
)

// The rest of the data plane knows user code by this package alone: what it needs of client and process has its name here.
type (
	// Outcome is what user code made of one message.
	Outcome = client.Outcome
	// Verdict is what to do with a message.
	Verdict = client.Verdict
	// Part gives a caller of MapPart what is done before all of it is, and ends the call early.
	Part = client.Part
	// Role is what a container is in its vertex: the value of NUMAFLOW_UD_CONTAINER_TYPE.
	Role = client.Role
	// Mount is a directory or a file of this machine that a function sees at another path.
	Mount = process.Mount
	// User is the user that a function runs as.
	User = process.User
)

// The verdicts.
const (
	Done    = client.Done
	Nacked  = client.Nacked
	Retry   = client.Retry
	Suspect = client.Suspect
	Broken  = client.Broken
	Unbegun = client.Unbegun
)

// The roles of this version.
const (
	UDF           = client.UDF
	Transformer   = client.Transformer
	UDSource      = client.UDSource
	UDSink        = client.UDSink
	FallbackSink  = client.FallbackSink
	OnSuccessSink = client.OnSuccessSink
)

// Platform is the Numaflow release whose contract we keep.
const Platform = client.Platform

// ErrStart means that trying again will not help: the command cannot be run, or is not the kind of function it should be.
var ErrStart = process.ErrStart

// Enter must be the first thing that a main function (or TestMain) of a program that runs functions does; see process.Enter.
func Enter() { process.Enter() }

// CanMount reports whether functions can have volumes, and /var/run/numaflow each for itself.
func CanMount() bool { return process.CanMount() }

// NewSocketRoot makes a directory for Config.SocketRoot, and removes those of processes that are gone. Remove it at the end.
func NewSocketRoot() (string, error) { return process.NewSocketRoot() }

// ParseUser reads NAME, UID or UID:GID; see process.ParseUser.
func ParseUser(s string) (*User, error) { return process.ParseUser(s) }

// Inherited returns what a function gets of the environment of this process; see process.Inherited.
func Inherited(allowed []string, u *User) map[string]string { return process.Inherited(allowed, u) }

// CheckVariables refuses names of variables that functions never get; see process.CheckVariables.
func CheckVariables(patterns []string) error { return process.CheckVariables(patterns) }
