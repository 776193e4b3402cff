// Copying the database's files.

package engine

// Checkpoint makes a consistent copy of the database in a new directory, and syncs it.
// It waits for nobody's transaction. If it fails, it leaves nothing behind. The copy of
// a database in memory is in memory, too.
func (db *DB) Checkpoint(dir string) error {
	return db.pebble().Checkpoint(dir)
}
