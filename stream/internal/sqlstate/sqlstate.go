// Package sqlstate classifies Postgres' error codes for a caller that can retry.
package sqlstate

// Class is what an error says about trying the same once more.
type Class int

const (
	Other     Class = iota // says nothing
	Data                   // the same data will be refused again, whatever else is stored
	Dependent              // other rows are missing or in the way, and may come or go
	Lock                   // another transaction is in the way
	Slow                   // the database did not wait for the client, or for a statement, any longer
	Full                   // no space is left
	Overload               // memory, connections or another limit is used up
	Outage                 // the server goes, comes, cannot be written to for now, or the connection broke
	Privilege              // the role lacks a privilege
	Schema                 // a table, column or another object that the statement names is missing, or is another
)

// Of returns the class of a code. See https://www.postgresql.org/docs/current/errcodes-appendix.html.
//
// Constraints that compare a row with others are Dependent, also uniqueness: the row that is in the way may be about to be changed. NOT NULL
// and CHECK look at the row alone. What a person has to put right, a privilege or the schema, does not refuse a record, and is not an outage that
// ends by itself. Other errors of class 42, such as a syntax error, are the statement's own.
func Of(code string) Class {
	switch code {
	case "23503", "23505", "23P01", "23001": // foreign key, unique, exclusion, restrict
		return Dependent
	case "55P03", "55006": // lock_timeout or NOWAIT; object in use
		return Lock
	case "57014", "25P03", "25P04": // statement_timeout; idle_in_transaction_session_timeout; transaction_timeout
		return Slow
	case "53100":
		return Full
	case "42501":
		return Privilege
	case "42P01", "42703", "42704", "42883", "42P10", "42804", "3F000": // no table, column, type, function or constraint of that name, column of another type, no schema
		return Schema
	case "25006": // read only: the server has become a standby, or was switched so while it is moved
		return Outage
	}
	switch code[:min(2, len(code))] {
	case "22", "23":
		return Data
	case "40": // serialization failure, deadlock
		return Lock
	case "53":
		return Overload
	case "08", "28", "57", "58": // connection; login, of which a password is being changed; shutdown and restart; the system below
		return Outage
	}
	return Other
}

// Advice says what a person can do about an error of the classes Privilege and Schema. It is empty for others. session says as whom, and where, the
// statement ran. own: the statement is one on the store's tables, and not the user's.
func Advice(class Class, session string, own bool) string {
	switch {
	case class == Privilege && own:
		return session + " lacks a privilege: grant it, or connect as a role that may read and write the tables levada_*"
	case class == Privilege:
		return session + " lacks a privilege: grant it, or connect as a role that has it"
	case class == Schema && own:
		return "the tables of " + session + " are not those that this program needs: see which versions Versions of the store's package returns, and which schema search_path or WithSchema names"
	case class == Schema:
		return "the statement does not fit the schema of " + session + ": apply the migration that is missing, or run the version of the program that fits"
	}
	return ""
}
