// A model directory on Android: what the contract says is held against what is there, then MNN opens it. Kotlin.

package app

import java.io.File
import java.security.MessageDigest
import org.json.JSONObject

class Model(folder: File, mnn: String) : AutoCloseable {
    private val chat: Long

    init {
        check(folder, mnn)
        chat = open(folder.path.toByteArray())
    }

    /** The answer to a user's words; slow, so not on the main thread. */
    fun say(words: String): String = String(say(chat, words.toByteArray()))

    override fun close() = close(chat)

    companion object {
        init {
            System.loadLibrary("app")
        }

        @JvmStatic private external fun open(folder: ByteArray): Long
        @JvmStatic private external fun say(chat: Long, words: ByteArray): ByteArray
        @JvmStatic private external fun close(chat: Long)

        /** Fails unless every file of the contract is there, whole, and made for this release of MNN. */
        fun check(folder: File, mnn: String, digests: Boolean = false) {
            val contract = JSONObject(File(folder, "contract.json").readText())
            val releases = contract.getJSONObject("target").getJSONArray("releases")
            check((0 until releases.length()).any { releases.getString(it) == mnn }) { "not made for MNN $mnn: $releases" }
            val files = contract.getJSONArray("files")
            for (index in 0 until files.length()) {
                val entry = files.getJSONObject(index)
                val file = File(folder, entry.getString("path"))
                check(file.length() == entry.getLong("bytes")) { "$file is not whole" }
                if (digests) check(sha256(file) == entry.getString("sha256")) { "$file is damaged" }
            }
        }

        private fun sha256(file: File): String {
            val digest = MessageDigest.getInstance("SHA-256")
            file.inputStream().use { stream ->
                val buffer = ByteArray(1 shl 20)
                while (true) {
                    val count = stream.read(buffer)
                    if (count < 0) break
                    digest.update(buffer, 0, count)
                }
            }
            return digest.digest().joinToString("") { "%02x".format(it) }
        }
    }
}
